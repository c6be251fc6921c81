#!/usr/bin/env python3
"""Writes the golden file of tests/attention/prefill_golden_test.cpp: attention of several queries with its gradients.

    python3 tests/golden/attention/make_prefill_golden.py        # numpy 2.2

The forward is the definition, with a mask. Gradients know nothing of how a softmax is differentiated: they are complex
steps, imag(f(x + ih)) / h, of the sum over d_out * out, one input number after the other, exact to the last digits.
Inputs follow from the case's seed as in make_golden.py (`numbers`); results are of the longest double, to 13 digits.
"""

import json
import pathlib

import numpy as np

from make_golden import digits, numbers

HERE = pathlib.Path(__file__).parent
# Numbers of the arrays in `numbers`, the order of the cases' fields in C++.
Q, K, V, D_OUT = range(4)
STEP = np.longdouble(1e-200)


def mask_of(case, b):
    """(T, S): which keys each query sees."""
    at = case["first_query"] + np.arange(case["queries"])[:, None]
    key = np.arange(case["keys"])[None, :]
    seen = key <= at
    if case["window"] > 0:
        seen &= key > at - case["window"]
    if case["first_keys"]:
        seen &= key >= np.array(case["first_keys"][b])[:, None]
    return seen


def attend(case, q, k, v):
    """out (B, H, T, Dv), lse (B, H, T) of q (B, H, T, D), k (B, K, S, D), v (B, K, S, Dv)."""
    group = case["n_heads"] // case["n_kv_heads"]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = np.longdouble(case["scale"]) * np.einsum("bhtd,bhsd->bhts", q, k)
    if case["softcap"] > 0:
        scores = np.longdouble(case["softcap"]) * np.tanh(scores / np.longdouble(case["softcap"]))
    seen = np.stack([mask_of(case, b) for b in range(case["batch"])])[:, None]
    weights = np.where(seen, np.exp(scores), 0)  # scores are small enough to do without a maximum
    total = weights.sum(-1)
    blind = ~np.broadcast_to(seen.any(-1), total.shape)
    out = np.einsum("bhts,bhsd->bhtd", weights / np.where(blind, 1, total)[..., None], v)
    return out, np.where(blind, -np.inf, np.log(np.where(blind, 1, total)))


def gradient(case, inputs, which, d_out):
    """Of the sum over d_out * out, by inputs[which]."""
    shifted = [x.astype(np.clongdouble) for x in inputs]
    result = np.zeros(inputs[which].size, np.longdouble)
    flat = shifted[which].reshape(-1)
    for i in range(flat.size):
        flat[i] += 1j * STEP
        result[i] = ((attend(case, *shifted)[0] * d_out).sum() / STEP).imag
        flat[i] = flat[i].real
    return result


def case_of(name, batch, n_heads, n_kv_heads, queries, keys, head_dim, v_head_dim, scale, first_query=0, window=0,
            softcap=0.0, first_keys=()):  # fmt: skip
    return {"name": name, "batch": batch, "n_heads": n_heads, "n_kv_heads": n_kv_heads, "queries": queries,
            "keys": keys, "head_dim": head_dim, "v_head_dim": v_head_dim, "scale": scale, "first_query": first_query,
            "window": window, "softcap": softcap, "first_keys": list(first_keys)}  # fmt: skip


CASES = [
    case_of("groups of three, values narrower than keys", 2, 6, 2, 4, 4, 16, 8, 0.1875),
    case_of("one KV head, behind a cache, window, soft cap", 1, 4, 1, 4, 9, 8, 16, 0.25, first_query=5, window=3,
            softcap=2.0),  # fmt: skip
    case_of("documents", 2, 2, 2, 7, 7, 8, 8, 0.3125, first_keys=[[0, 0, 2, 2, 2, 5, 5], [0, 1, 1, 1, 4, 4, 6]]),
    case_of("documents behind a cache, window, soft cap", 1, 3, 1, 5, 8, 8, 8, 0.3125, first_query=3, window=4,
            softcap=1.5, first_keys=[[1, 1, 5, 5, 7]]),  # fmt: skip
    case_of("queries that see nothing", 1, 2, 1, 6, 3, 8, 8, 0.25, first_query=-2, window=2),
]


def main():
    golden = []
    for seed, case in enumerate(CASES, 101):
        case = case | {"seed": seed}
        heads, kv_heads, rows, keys = case["n_heads"], case["n_kv_heads"], case["queries"], case["keys"]
        d, dv, b = case["head_dim"], case["v_head_dim"], case["batch"]
        inputs = [numbers(seed, Q, (b, heads, rows, d)), numbers(seed, K, (b, kv_heads, keys, d)),
                  numbers(seed, V, (b, kv_heads, keys, dv))]  # fmt: skip
        d_out = numbers(seed, D_OUT, (b, heads, rows, dv))
        out, lse = attend(case, *inputs)
        results = {"out": digits(out), "lse": digits(lse)}
        for which, name in enumerate(("d_q", "d_k", "d_v")):
            results[name] = digits(gradient(case, inputs, which, d_out))
        golden.append(case | results)
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in golden)
    (HERE / "prefill.json").write_text(f'{{"cases":[\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
