#!/usr/bin/env python3
"""Whole decode steps of a model of Llama-3-8B's shape (random bf16 weights, grouped-query cache of 8 heads x 128) in
plain PyTorch: what a converted model's decode is measured against.

    decode_model.py [--attention NAME ...] [--json FILE]    # on a CUDA device with 40 GiB or more; a minute on an H100

Needs PyTorch and Triton, as decode_peers.py. `cinch bench decode --shape llama-3-8b` is the same step by cinch.

One step takes one token per request to the next: embedding, 32 layers (norm, one product for q, k and v, rotation,
append to the cache, attention, output product, norm, gated feed-forward), norm, logits, argmax; all of it in one CUDA
graph. Time: median of its replays. Attention: `sdpa` (PyTorch chooses the backend), `sdpa-flash`, `sdpa-cudnn`,
`triton` (triton_decode.py, dense). The attention of the first layer is compared with fp64 before a step is timed, as in
decode_peers.py. A cache that does not fit beside the weights is skipped and reported so. bench/results/README.md
describes the lines of --json.
"""

import argparse
import dataclasses
import json
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

from decode_cases import BATCHES, CONTEXTS, Inputs, error_of, gqa
from decode_peers import TOLERANCE, sdpa_peer, triton_peer
from device_timing import graph_of, identity, median_seconds
from triton_decode import serving_blocks

BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
ATTENTIONS = {
    "sdpa": sdpa_peer(BACKENDS, False),
    "sdpa-flash": sdpa_peer([SDPBackend.FLASH_ATTENTION], False),
    "sdpa-cudnn": sdpa_peer([SDPBackend.CUDNN_ATTENTION], False),
    "triton": triton_peer(serving_blocks),
}


@dataclasses.dataclass(frozen=True)
class Shape:
    n_layers: int = 32
    hidden_size: int = 4096
    n_heads: int = 32
    n_kv_heads: int = 8
    head_dim: int = 128
    intermediate_size: int = 14336
    vocab_size: int = 128256
    rope_theta: float = 500000.0
    rms_norm_eps: float = 1e-5


class Model:
    """Random weights; every tensor of every layer is its own, as in a real model, so that a step reads them all."""

    def __init__(self, shape, device, dtype=torch.bfloat16):
        def weight(*sizes):
            return torch.empty(*sizes, dtype=dtype, device=device).normal_(0, 0.02)

        s, self.shape = shape, shape
        self.embed = weight(s.vocab_size, s.hidden_size)
        self.lm_head = weight(s.vocab_size, s.hidden_size)
        self.norm = torch.ones(s.hidden_size, dtype=dtype, device=device)
        self.layers = []
        for _ in range(s.n_layers):
            layer = {
                "input_norm": torch.ones_like(self.norm),
                "qkv": weight((s.n_heads + 2 * s.n_kv_heads) * s.head_dim, s.hidden_size),
                "o": weight(s.hidden_size, s.n_heads * s.head_dim),
                "post_norm": torch.ones_like(self.norm),
                "gate_up": weight(2 * s.intermediate_size, s.hidden_size),
                "down": weight(s.hidden_size, s.intermediate_size),
            }
            self.layers.append(layer)
        exponents = torch.arange(0, s.head_dim, 2, device=device, dtype=torch.float32) / s.head_dim
        self.inv_freq = s.rope_theta**-exponents

    def weight_bytes(self):
        """What a step reads of the weights: all but the embedding's other rows."""
        tensors = [self.lm_head, self.norm] + [tensor for layer in self.layers for tensor in layer.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def make_cache(self, batch, context):
        """Random keys and values (B, K, S, D) of each layer."""
        sizes = (batch, self.shape.n_kv_heads, context, self.shape.head_dim)

        def random():
            return torch.empty(sizes, dtype=self.norm.dtype, device=self.norm.device).normal_()

        return [(random(), random()) for _ in self.layers]

    def normed(self, hidden, weight):
        return F.rms_norm(hidden, (self.shape.hidden_size,), weight, self.shape.rms_norm_eps)


class Step:
    """One decode step at the last position of a full cache: calling it returns the next token of each request (B)."""

    def __init__(self, model, cache, make_attention, tokens):
        s = model.shape
        batch, _, context, _ = cache[0][0].shape
        self.model, self.cache, self.tokens = model, cache, tokens
        self.position = torch.tensor([context - 1], device=tokens.device)
        # Rotated queries and keys of all layers in turn; the attention reads its queries there.
        sizes = (batch, s.n_heads + s.n_kv_heads, s.head_dim)
        self.rotated = torch.empty(sizes, dtype=model.norm.dtype, device=tokens.device)
        self.case = gqa(batch, context, s.n_heads // s.n_kv_heads, s.head_dim, s.n_kv_heads)
        lengths = torch.full((batch,), context, dtype=torch.int32, device=tokens.device)
        self.inputs = [Inputs(self.rotated[:, : s.n_heads], k, v, lengths) for k, v in cache]
        self.attentions = [make_attention(self.case, each) for each in self.inputs]

    def __call__(self):
        model, s, batch = self.model, self.model.shape, len(self.tokens)
        n_rotated, half = s.n_heads + s.n_kv_heads, s.head_dim // 2
        angle = self.position[:, None] * model.inv_freq
        cos, sin = (torch.cat([part, part], -1).to(model.norm.dtype) for part in (angle.cos(), angle.sin()))
        hidden = F.embedding(self.tokens, model.embed)
        for layer, (keys, values), attention in zip(model.layers, self.cache, self.attentions):
            qkv = F.linear(model.normed(hidden, layer["input_norm"]), layer["qkv"]).view(batch, -1, s.head_dim)
            qk, v = qkv[:, :n_rotated], qkv[:, n_rotated:]
            turned = torch.cat([-qk[..., half:], qk[..., :half]], -1)
            torch.addcmul(qk * cos, turned, sin, out=self.rotated)
            keys.index_copy_(2, self.position, self.rotated[:, s.n_heads :, None])
            values.index_copy_(2, self.position, v[:, :, None])
            hidden = hidden + F.linear(attention().reshape(batch, -1), layer["o"])
            gate, up = F.linear(model.normed(hidden, layer["post_norm"]), layer["gate_up"]).chunk(2, -1)
            hidden = hidden + F.linear(F.silu(gate) * up, layer["down"])
        return F.linear(model.normed(hidden, model.norm), model.lm_head).argmax(-1)

    def attention_error(self):
        """Relative Frobenius error of the first layer's attention, for random queries."""
        self.rotated.normal_()
        return error_of(self.case, self.inputs[0], self.attentions[0](), sorted({0, self.case.batch - 1}))


def measure(model, cache, make_attention, tokens):
    """The fields of one attention's line."""
    try:
        step = Step(model, cache, make_attention, tokens)
        error = step.attention_error()
        if not error <= TOLERANCE:
            return {"status": "wrong", "error": error}
        graph = graph_of([step])
        seconds = median_seconds(graph.replay, 0.3)
    except torch.cuda.OutOfMemoryError:
        return {"status": "out of memory"}
    except RuntimeError as failure:
        return {"status": "failed", "reason": (str(failure).strip() or type(failure).__name__).splitlines()[0][:200]}
    return {"status": "ok", "error": error, "us": seconds * 1e6, "tokens_per_second": len(tokens) / seconds}


class Report:
    """Prints a table and writes JSON lines."""

    def __init__(self, common, path):
        self.common = common
        self.file = open(path, "w", encoding="utf-8") if path else None
        versions = ", ".join(f"{key} {common[key]}" for key in ("driver", "torch", "triton", "commit"))
        print(f"{common['device']}, {versions}")
        print(f"copy of 1 GiB: {common['copy_gb_per_s']:.0f} GB/s; weights {common['weight_bytes'] * 1e-9:.2f} GB\n")
        print(f"{'B':>3} {'S':>6} {'cache GB':>9} {'attention':12} {'ms/step':>9} {'tokens/s':>9} {'of copy':>8}")

    def __call__(self, about, fields):
        if fields["status"] == "ok":
            read = about["cache_bytes"] + self.common["weight_bytes"]
            fields["share_of_copy"] = read / fields["us"] * 1e-3 / self.common["copy_gb_per_s"]
            milliseconds = fields["us"] * 1e-3
            text = f"{milliseconds:9.2f} {fields['tokens_per_second']:9.0f} {fields['share_of_copy']:8.1%}"
        else:
            text = "  ".join(str(fields[key]) for key in ("status", "reason", "error") if key in fields)
        case = f"{about['batch']:3} {about['context']:6} {about['cache_bytes'] * 1e-9:9.2f}"
        print(f"{case} {about['kernel']:12} {text}", flush=True)
        if self.file:
            self.file.write(json.dumps(self.common | about | fields) + "\n")
            self.file.flush()


def run_case(model, attentions, batch, context, report):
    s = model.shape
    cache_bytes = s.n_layers * gqa(batch, context, 1, s.head_dim, s.n_kv_heads).cache_bytes
    about = {"batch": batch, "context": context, "cache_bytes": cache_bytes, "dtype": "bf16"}
    free, total = torch.cuda.mem_get_info()
    if cache_bytes + (1 << 30) > free:
        gib = [f"{size / 2**30:.1f}" for size in (cache_bytes, free, total)]
        reason = f"{gib[0]} GiB of cache, {gib[1]} of {gib[2]} GiB free beside the weights"
        report(about | {"kernel": "all"}, {"status": "does not fit", "reason": reason})
        return
    cache = model.make_cache(batch, context)
    tokens = torch.randint(s.vocab_size, (batch,), device=model.norm.device)
    for name in attentions:
        report(about | {"kernel": name}, measure(model, cache, ATTENTIONS[name], tokens))
        torch.cuda.empty_cache()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attention", nargs="+", choices=list(ATTENTIONS), default=list(ATTENTIONS))
    parser.add_argument("--json", help="file for one JSON line per case and attention")
    parser.add_argument("--commit", help="commit to record where the folder is no clone")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("decode_model.py: no CUDA device")
    torch.manual_seed(0)
    device = torch.device("cuda")
    begin = time.perf_counter()
    common = identity("decode_model.py", device, args.commit)
    torch.cuda.empty_cache()
    with torch.inference_mode():
        model = Model(Shape(), device)
        common |= {"weight_bytes": model.weight_bytes()} | dataclasses.asdict(model.shape)
        report = Report(common, args.json)
        for batch in BATCHES:
            for context in CONTEXTS:
                run_case(model, args.attention, batch, context, report)
                torch.cuda.empty_cache()
    print(f"\n{time.perf_counter() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
