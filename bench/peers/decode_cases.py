"""What is decoded: cases of one layer's decode, their random inputs, and the fp64 reference that every kernel's result
is compared with.

Letters: B batch, H query heads, K KV heads, S cached tokens, D width of a key (latent: R + Dr), Dv width of a value
(latent: R), P pages.
"""

import dataclasses
import math
from typing import Optional

import torch

from triton_decode import PAGE


@dataclasses.dataclass(frozen=True)
class Case:
    """Decode of one token per request. Latent attention: one KV head of kv_lora_rank + qk_rope_head_dim numbers; with
    v_head_dim its result is taken to values of that width by a map per head.
    """

    attention: str
    batch: int
    context: int
    n_heads: int
    n_kv_heads: int = 1
    head_dim: int = 0
    kv_lora_rank: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0
    ragged: bool = False  # requests of 1/2 to 3/2 of `context`

    @property
    def lengths(self):
        """Tokens of each request (B), the same each time."""
        if not self.ragged:
            return torch.full((self.batch,), self.context, dtype=torch.int32)
        spread = torch.randint(self.context, (self.batch,), generator=torch.Generator().manual_seed(3))
        return (self.context // 2 + spread).to(torch.int32)

    @property
    def key_dim(self):
        return self.head_dim or self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def value_dim(self):
        return self.head_dim or self.kv_lora_rank

    @property
    def group(self):
        return self.n_heads // self.n_kv_heads

    @property
    def scale(self):
        return self.key_dim**-0.5

    @property
    def cache_bytes(self):
        """What a decode step must read of a bf16 cache."""
        row = self.key_dim if self.attention == "mla" else 2 * self.head_dim * self.n_kv_heads
        return 2 * int(self.lengths.sum()) * row

    def __str__(self):
        latent = f"{self.kv_lora_rank}+{self.qk_rope_head_dim} H {self.n_heads}"
        size = latent if self.attention == "mla" else f"{self.n_kv_heads}x{self.head_dim} g {self.group}"
        values = f" Dv {self.v_head_dim}" if self.v_head_dim else ""
        return f"{self.attention} {size} B {self.batch} S {self.context}{'~' if self.ragged else ''}{values}"


def gqa(batch, context, group, head_dim, n_kv_heads=8):
    return Case("gqa", batch, context, group * n_kv_heads, n_kv_heads, head_dim=head_dim)


def mla(batch, context, n_heads, rank, rope_dim, **more):
    return Case("mla", batch, context, n_heads, kv_lora_rank=rank, qk_rope_head_dim=rope_dim, **more)


BATCHES, CONTEXTS = (1, 16, 64), (2048, 8192, 32768)
GROUPS, HEAD_DIMS = (1, 4, 5, 6, 7, 8, 9, 12), (64, 128)
RANKS, ROPE_DIMS, HEADS = (64, 96, 128, 192, 256, 320, 384, 448, 512), (32, 64), (9, 16, 32, 64, 128)
SMALL_RANKS = (64, 128, 256, 512)  # of few requests
RAGGED = [mla(128, 4096, 32, rank, 64, ragged=True) for rank in (128, 512)]


def all_cases():
    """The cases of our own benchmark (tests/attention/cuda/decode_device_bench.cu)."""
    cases = [gqa(b, s, g, d) for d in HEAD_DIMS for b in BATCHES for s in CONTEXTS for g in GROUPS]
    cases += [mla(64, 8192, h, r, dr) for dr in ROPE_DIMS for h in HEADS for r in RANKS] + RAGGED
    few = [(b, s, h, r) for h in (16, 32) for b in (1, 4) for s in (1024, 4096) for r in SMALL_RANKS]
    return cases + [mla(b, s, h, r, 64, v_head_dim=dv) for b, s, h, r in few for dv in (0, 128)]


def default_cases():
    """Of them: every group and rank at one size, every batch and context at one group, heads and few requests."""
    cases = [gqa(16, 8192, g, 128) for g in GROUPS] + [gqa(b, s, 4, 128) for b in BATCHES for s in CONTEXTS]
    cases += [gqa(16, 8192, 4, 64)]
    cases += [mla(64, 8192, 32, r, 64) for r in RANKS] + [mla(64, 8192, h, r, 64) for r in (128, 512) for h in HEADS]
    cases += [mla(b, s, 32, 512, 64) for b in (1, 4) for s in (1024, 4096)] + [mla(1, 4096, 32, 128, 64)]
    cases += [mla(1, 4096, 32, r, 64, v_head_dim=128) for r in (128, 512)]
    return list(dict.fromkeys(cases + RAGGED))


@dataclasses.dataclass
class Inputs:
    """q (B, H, D). Dense: k (B, K, S, D), v (B, K, S, Dv); paged: k (P, 64, K, D), v (P, 64, K, Dv), table (B, S/64).

    Latent: v is a part of k. lengths: (B) int32. value_map: (H, v_head_dim, R).
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    lengths: torch.Tensor
    table: Optional[torch.Tensor] = None
    value_map: Optional[torch.Tensor] = None


def make_inputs(case, copies, paged, device, dtype=torch.bfloat16):
    """`copies` independent random inputs; the pages of all requests lie in random order."""

    def random(*shape):
        return torch.randn(copies, *shape, dtype=dtype, device=device)

    longest = int(case.lengths.max())
    pages = case.batch * -(-longest // PAGE)
    rows = (pages, PAGE, case.n_kv_heads) if paged else (case.batch, case.n_kv_heads, longest)
    q, k = random(case.batch, case.n_heads, case.key_dim), random(*rows, case.key_dim)
    v = k[..., : case.value_dim] if case.attention == "mla" else random(*rows, case.value_dim)
    lengths = case.lengths.to(device)

    def table():
        return torch.randperm(pages, device=device, dtype=torch.int32).view(case.batch, -1) if paged else None

    maps = random(case.n_heads, case.v_head_dim, case.kv_lora_rank) if case.v_head_dim else [None] * copies
    return [Inputs(q[i], k[i], v[i], lengths, table(), maps[i]) for i in range(copies)]


def reference(case, inputs, request):
    """out (H, Dv, or v_head_dim with a value map) of one request in fp64; zeros where it has no token."""
    length = int(inputs.lengths[request])
    if length == 0:
        width = case.v_head_dim or case.value_dim
        return torch.zeros(case.n_heads, width, dtype=torch.float64, device=inputs.q.device)
    k, v = inputs.k, inputs.v
    if inputs.table is None:
        k, v = k[request], v[request]
    else:
        pages = inputs.table[request].long()
        k, v = (rows[pages].flatten(0, 1).transpose(0, 1) for rows in (k, v))
    k, v = k[:, :length].double(), v[:, :length].double()
    q = inputs.q[request].double().view(case.n_kv_heads, case.group, case.key_dim)
    weights = torch.softmax(torch.einsum("kgd,ksd->kgs", q, k) * case.scale, -1)
    out = torch.einsum("kgs,ksv->kgv", weights, v).reshape(case.n_heads, case.value_dim)
    return out if inputs.value_map is None else torch.einsum("hr,hvr->hv", out, inputs.value_map.double())


def error_of(case, inputs, out, requests):
    """Largest relative Frobenius error of the requests' results; infinite where any number of all is not finite."""
    if not torch.isfinite(out).all():
        return math.inf
    worst = 0.0
    for request in requests:
        want = reference(case, inputs, request)
        norm = want.norm().item()
        difference = (out[request].double() - want).norm().item()
        worst = max(worst, difference / norm if norm > 0 else difference)
    return worst
