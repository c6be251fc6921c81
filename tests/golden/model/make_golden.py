#!/usr/bin/env python3
"""Makes the golden models of tests/model: tiny random models of every family with stock transformers, and their fp32 logits.

    make_golden.py [ASSETS]      (transformers 4.57.6, torch, safetensors; ASSETS is the folder with the real models)

Each case is a folder: config.json, model.safetensors (weights rounded to bf16, so that the files are small and both types are read) and
golden.safetensors: ids (B, T) and the logits (B, T, V) of the eager fp32 forward pass. Weights are drawn wide, so that attention is far from
uniform and biases, norms and caps show. rope/<case> holds only config.json and golden.safetensors: the weights are those of llama_gqa.
real.safetensors holds ids and some logit columns of the real models.
"""
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (AutoModelForCausalLM, DeepseekV2Config, DeepseekV2ForCausalLM, DeepseekV3Config,
                          DeepseekV3ForCausalLM, Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM,
                          MistralConfig, MistralForCausalLM, Phi3Config, Phi3ForCausalLM, Qwen2Config, Qwen2ForCausalLM,
                          Qwen3Config, Qwen3ForCausalLM)

HERE = Path(__file__).parent
TOKENS = 40


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if name.endswith("norm.weight"):
                gemma = "Gemma" in type(model).__name__
                p.copy_(0.25 * noise + (0.0 if gemma else 1.0))
            elif name.endswith("bias"):
                p.copy_(0.5 * noise)
            elif "embed_tokens" in name or "lm_head" in name:
                p.copy_(noise * 0.5)
            else:
                p.copy_(noise * 1.5 / p.shape[1] ** 0.5)
            p.copy_(p.to(torch.bfloat16).float())


def logits_of(model, ids):
    model.eval()
    with torch.no_grad():
        return model(ids, use_cache=False).logits.float().contiguous()


def ids_for(vocab, seed, tokens=TOKENS):
    return torch.randint(0, vocab, (2, tokens), generator=torch.Generator().manual_seed(seed))


def write_case(folder, config, ids, logits):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file({"ids": ids, "logits": logits}, folder / "golden.safetensors")


def config_dict(config, name):
    d = config.to_dict()
    d["architectures"] = [name]
    d["torch_dtype"] = "bfloat16"
    for key in ("dtype", "transformers_version", "_name_or_path", "_attn_implementation_autoset"):
        d.pop(key, None)
    return {k: v for k, v in d.items() if k in KEPT}


KEPT = set("""architectures model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim hidden_act
hidden_activation max_position_embeddings original_max_position_embeddings rms_norm_eps rope_theta rope_scaling tie_word_embeddings attention_bias mlp_bias
sliding_window use_sliding_window max_window_layers layer_types query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping
partial_rotary_factor bos_token_id eos_token_id torch_dtype
q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim first_k_dense_replace n_routed_experts rope_interleave""".split())


def make(name, cls, config, seed, tokens=TOKENS):
    config._attn_implementation = "eager"
    model = cls(config)
    randomise(model, seed)
    folder = HERE / name
    ids = ids_for(config.vocab_size, seed + 1, tokens)
    write_case(folder, config_dict(config, cls.__name__), ids, logits_of(model, ids))
    state = {k: v.to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    if config.tie_word_embeddings:
        state.pop("lm_head.weight")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return state


SMALL = dict(vocab_size=96, num_hidden_layers=2, bos_token_id=1, eos_token_id=2, pad_token_id=0)
GQA = dict(SMALL, hidden_size=48, intermediate_size=64, num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=64)

ROPE = {
    "linear": dict(rope_scaling={"rope_type": "linear", "factor": 2.5}),
    "dynamic": dict(rope_scaling={"type": "dynamic", "factor": 3.0}, max_position_embeddings=16),
    "yarn": dict(rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}),
    "yarn_mscale": dict(rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "mscale": 0.7,
                                      "mscale_all_dim": 1.3, "beta_fast": 2.0, "beta_slow": 0.5, "truncate": False}),
    "llama3": dict(rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                 "original_max_position_embeddings": 24}),
    "longrope": dict(rope_scaling={"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0, 1.1, 1.3, 1.7],
                                   "long_factor": [1.0, 2.0, 5.0, 9.0]}, max_position_embeddings=32),
    "longrope_attention_factor": dict(rope_scaling={"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0, 1.1, 1.3, 1.7],
                                                    "long_factor": [1.0, 2.0, 5.0, 9.0], "attention_factor": 1.25}),
}


def make_rope_cases(state):
    for name, change in ROPE.items():
        base = dict(GQA, rope_theta=100.0)
        base.update(json.loads(json.dumps(change)))
        config = LlamaConfig(**base)
        config._attn_implementation = "eager"
        model = LlamaForCausalLM(config)
        model.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
        ids = ids_for(config.vocab_size, 77)
        kept = config_dict(config, "LlamaForCausalLM")
        kept["rope_scaling"] = change["rope_scaling"]
        write_case(HERE / "rope" / name, kept, ids, logits_of(model, ids))


def make_families():
    make("llama_mha", LlamaForCausalLM, LlamaConfig(**SMALL, hidden_size=48, intermediate_size=80, num_attention_heads=6,
         num_key_value_heads=6, max_position_embeddings=64, tie_word_embeddings=True), 10)
    state = make("llama_gqa", LlamaForCausalLM, LlamaConfig(**GQA, rope_theta=100.0), 20)
    make("llama_bias", LlamaForCausalLM, LlamaConfig(**SMALL, hidden_size=72, intermediate_size=40, num_attention_heads=9,
         num_key_value_heads=3, head_dim=16, attention_bias=True, mlp_bias=True, max_position_embeddings=64), 30)
    make("llama_wide_heads", LlamaForCausalLM, LlamaConfig(**SMALL, hidden_size=48, intermediate_size=40, num_attention_heads=3,
         num_key_value_heads=1, head_dim=48, max_position_embeddings=64), 40)
    make("mistral", MistralForCausalLM, MistralConfig(**GQA, sliding_window=7), 50)
    make("qwen2", Qwen2ForCausalLM, Qwen2Config(**dict(GQA, num_hidden_layers=3), use_sliding_window=True, sliding_window=9,
         max_window_layers=1, tie_word_embeddings=True), 60)
    make("qwen3", Qwen3ForCausalLM, Qwen3Config(**GQA, head_dim=24, tie_word_embeddings=True), 70)
    make("gemma2", Gemma2ForCausalLM, Gemma2Config(**dict(GQA, num_hidden_layers=3), head_dim=16, query_pre_attn_scalar=24,
         sliding_window=6, attn_logit_softcapping=5.0, final_logit_softcapping=8.0), 80)
    phi = dict(SMALL, hidden_size=48, intermediate_size=56, num_attention_heads=3, num_key_value_heads=3, partial_rotary_factor=0.75,
               max_position_embeddings=64, original_max_position_embeddings=16)
    longrope = {"type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 1.7], "long_factor": [1.0, 2.0, 3.0, 5.0, 7.0, 11.0]}
    make("phi3_long", Phi3ForCausalLM, Phi3Config(**phi, rope_scaling=dict(longrope)), 90)
    make("phi3_short", Phi3ForCausalLM, Phi3Config(**dict(phi, num_key_value_heads=1), rope_scaling=dict(longrope), sliding_window=11), 100, 16)
    dense = dict(SMALL, hidden_size=48, intermediate_size=56, num_attention_heads=6, num_key_value_heads=6, kv_lora_rank=20, qk_nope_head_dim=7,
                 qk_rope_head_dim=8, v_head_dim=9, first_k_dense_replace=2, n_routed_experts=8, max_position_embeddings=64, rms_norm_eps=1e-5)
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "mscale": 0.7, "mscale_all_dim": 1.3}
    make("deepseek_v3", DeepseekV3ForCausalLM, DeepseekV3Config(**dense, q_lora_rank=None, rope_scaling=dict(yarn)), 110)
    longrope = {"rope_type": "longrope", "factor": 1.0, "attention_factor": 1.0, "original_max_position_embeddings": 64,
                "short_factor": [1.0, 0.5, 0.5, 7.0], "long_factor": [1.0, 0.5, 0.5, 7.0]}
    make("deepseek_v3_narrow", DeepseekV3ForCausalLM, DeepseekV3Config(**dict(dense, qk_nope_head_dim=16), q_lora_rank=18, attention_bias=True,
         rope_scaling=dict(longrope)), 120)
    make("deepseek_v2", DeepseekV2ForCausalLM, DeepseekV2Config(**dict(dense, qk_nope_head_dim=6), q_lora_rank=18, rope_theta=100.0), 130)
    make_rope_cases(state)


def make_real(assets):
    out = {}
    for name, path in {"tinyllama_f32": "tinyllama3m-mha/hf-f32", "tinyllama_bf16": "tinyllama3m-mha/hf-bf16-sharded",
                       "stories": "stories260K-gqa/hf-f32"}.items():
        model = AutoModelForCausalLM.from_pretrained(assets / "models" / path, dtype=torch.float32, attn_implementation="eager")
        vocab = model.config.vocab_size
        ids = torch.randint(3, vocab, (1, 96), generator=torch.Generator().manual_seed(5))
        out[name + ".ids"] = ids
        out[name + ".logits"] = logits_of(model, ids)[..., :: max(1, vocab // 32)].contiguous()
    save_file(out, HERE / "real.safetensors")


if __name__ == "__main__":
    make_families()
    if len(sys.argv) > 1:
        make_real(Path(sys.argv[1]))
