#!/usr/bin/env python3
"""Writes the golden files of tests/eval with Hugging Face transformers (CPU, fp64): two tiny random Llama models (9 query heads on 3 KV heads) and
perplexities of three protocols and the divergence between the models, computed independently of cinch.

    python3 make_golden.py        # transformers 4.57, torch 2.11
"""
import json
import pathlib

import torch
from transformers import LlamaConfig, LlamaForCausalLM

here = pathlib.Path(__file__).parent
config = LlamaConfig(vocab_size=61, hidden_size=36, intermediate_size=20, num_hidden_layers=2, num_attention_heads=9, num_key_value_heads=3,
                     head_dim=4, max_position_embeddings=128, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2)
torch.manual_seed(7)
model = LlamaForCausalLM(config)
for parameter in model.parameters():
    if parameter.dim() == 2:
        torch.nn.init.normal_(parameter, std=0.3)
reference = LlamaForCausalLM(config)
reference.load_state_dict({n: t + 0.03 * torch.randn_like(t) for n, t in model.state_dict().items()})
reference.tie_weights()
for name, m in (("model", model), ("reference", reference)):
    m.save_pretrained(here / name, safe_serialization=True)
    (here / name / "generation_config.json").unlink(missing_ok=True)

ids = torch.randint(3, 61, (500,)).tolist()
model, reference = model.double().eval(), reference.double().eval()


@torch.no_grad()
def log_probabilities(m, window):
    return torch.log_softmax(m(torch.tensor([window])).logits[0], -1)


def windows_of(protocol):
    """(window ids, first scored position) of each window."""
    kind, size, stride = protocol
    if kind == "gptq":
        return [(ids[b:b + size], 1) for b in range(0, len(ids) - size + 1, size)]
    if kind == "llamacpp":  # llama.cpp tools/perplexity: BOS before the text and over the first token of each chunk, n_ctx/2 .. n_ctx-2 predict
        text = [config.bos_token_id] + ids
        return [([config.bos_token_id] + text[b + 1:b + size], size // 2 + 1) for b in range(0, len(text) - size + 1, size)]
    result, previous_end = [], 0
    for begin in range(0, len(ids), stride):  # the loop of the transformers documentation
        end = min(begin + size, len(ids))
        result.append((ids[begin:end], max(previous_end - begin, 1)))
        previous_end = end
        if end == len(ids):
            break
    return result


def measure(protocol):
    nll, reference_nll, kl, agree = [], [], [], []
    windows = windows_of(protocol)
    for window, first in windows:
        a, b = log_probabilities(model, window), log_probabilities(reference, window)
        for position in range(first, len(window)):
            p, q = a[position - 1], b[position - 1]
            nll.append(-p[window[position]].item())
            reference_nll.append(-q[window[position]].item())
            kl.append((q.exp() * (q - p)).sum().item())
            agree.append(int(p.argmax() == q.argmax()))
    counts = [len(w) - f for w, f in windows]
    starts = [sum(counts[:i]) for i in range(len(counts))]
    mean = sum(nll) / len(nll)
    residuals = [sum(nll[s:s + c]) - mean * c for s, c in zip(starts, counts)]
    n = len(windows)
    error = (sum(r * r for r in residuals) / (n * (n - 1))) ** 0.5 / (len(nll) / n)
    changes = [torch.tensor(-x).exp().item() - torch.tensor(-y).exp().item() for x, y in zip(nll, reference_nll)]
    q = torch.tensor(kl, dtype=torch.float64)
    return {"perplexity": torch.tensor(mean, dtype=torch.float64).exp().item(), "stderr": error * torch.tensor(mean, dtype=torch.float64).exp().item(), "tokens": len(nll), "windows": n,
            "reference_perplexity": torch.tensor(sum(reference_nll) / len(nll), dtype=torch.float64).exp().item(), "kl_mean": q.mean().item(),
            "kl_median": q.quantile(0.5).item(), "kl_p99": q.quantile(0.99).item(), "kl_max": q.max().item(),
            "top1_agreement": sum(agree) / len(agree), "change_mean": sum(changes) / len(changes),
            "change_rms": (sum(c * c for c in changes) / len(changes)) ** 0.5}


golden = {"ids": ids, "protocols": {}}
for name, protocol in {"ppl-gptq-48": ("gptq", 48, 0), "ppl-stride-40-16": ("stride", 40, 16), "ppl-llamacpp-32": ("llamacpp", 32, 0)}.items():
    golden["protocols"][name] = measure(protocol)
sequence = ids[:17]
golden["last_logits"] = model(torch.tensor([sequence])).logits[0, -1].tolist()
golden["sequence"] = sequence
(here / "golden.json").write_text(json.dumps(golden) + "\n")
