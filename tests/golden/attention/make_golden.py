#!/usr/bin/env python3
"""Writes the golden file of tests/attention/decode_golden_test.cpp: decode attention of one token per sequence, grouped
and latent (absorbed), as directly as its definition states it (loops over sequences, heads and tokens, fp64).

    python3 tests/golden/attention/make_golden.py        # numpy 2.2

Inputs are not in the file but follow from the case's seed (`numbers`), so that both sides make the same ones: multiples
of 1/64 between -2 and 2, exact in bf16 and fp16. Results are in the file, of the longest double that numpy has, to
13 digits.
"""

import json
import pathlib

import numpy as np

HERE = pathlib.Path(__file__).parent
# Numbers of the arrays in `numbers`, the order of the cases' fields in C++.
Q, KEYS, VALUES, LATENT, ROPE, KEY_SCALES, VALUE_MAP, VALUE_BIAS = range(8)


def numbers(seed, array, shape):
    """Element i: the top byte of a hash of (seed, array, i), as a signed number, over 64."""
    with np.errstate(over="ignore"):
        start = np.uint32(seed) * np.uint32(0x85EBCA77) + np.uint32(array) * np.uint32(0xC2B2AE3D)
        h = (np.arange(1, np.prod(shape) + 1, dtype=np.uint32) * np.uint32(0x9E3779B1)) ^ start
        h = (h ^ (h >> np.uint32(15))) * np.uint32(0x2C1B3C6D)
        h = (h ^ (h >> np.uint32(12))) * np.uint32(0x297A2D39)
    h = h ^ (h >> np.uint32(15))
    return (h >> np.uint32(24)).astype(np.uint8).view(np.int8).astype(np.longdouble).reshape(shape) / 64


def positive(x):
    """Key scales: multiples of 1/64 in 0.5 .. 1.5."""
    return (np.mod(x * 64, 64) + 32) / 64


def dot(a, b):
    total = np.longdouble(0)
    for x, y in zip(a, b):
        total += x * y
    return total


def attend(case, q, length, key, value):
    """One head's result and log-sum-exp: q (D), key(t) the key of token t and what multiplies its score, value(t)."""
    first = max(0, length - case["window"]) if case["window"] > 0 else 0
    scores = []
    for t in range(first, length):
        k, key_scale = key(t)
        score = np.longdouble(case["scale"]) * key_scale * dot(q, k)
        if case["softcap"] > 0:
            score = np.longdouble(case["softcap"]) * np.tanh(score / np.longdouble(case["softcap"]))
        scores.append(score)
    largest = max(scores)
    total, out = np.longdouble(0), 0
    for t, score in enumerate(scores, first):
        weight = np.exp(score - largest)
        total += weight
        out = out + weight * value(t)
    return out / total, largest + np.log(total)


def grouped(case):
    """out (B, H, D), lse (B, H). Arrays: q (B, H, D), keys and values (B, K, S, D), S the longest sequence."""
    heads, kv_heads, dim, seed = case["n_heads"], case["n_kv_heads"], case["head_dim"], case["seed"]
    batch, longest = len(case["lengths"]), max(case["lengths"])
    q = numbers(seed, Q, (batch, heads, dim))
    keys = numbers(seed, KEYS, (batch, kv_heads, longest, dim))
    values = numbers(seed, VALUES, (batch, kv_heads, longest, dim))
    out, lse = np.zeros((batch, heads, dim), np.longdouble), np.full((batch, heads), -np.inf, np.longdouble)
    for b, length in enumerate(case["lengths"]):
        for h in range(heads if length > 0 else 0):
            k, v = keys[b, h // (heads // kv_heads)], values[b, h // (heads // kv_heads)]
            out[b, h], lse[b, h] = attend(case, q[b, h], length, lambda t: (k[t], 1), lambda t: v[t])
    return out, lse


def latent(case):
    """out (B, H, R or Dv), lse (B, H). Arrays: q (B, H, R+Dr), latent (B, S, R), rope (B, S, rotary keys, Dr), key
    scales (B, S, K), value map (H, Dv, R), value bias (H, Dv)."""
    heads, kv_heads, seed = case["n_heads"], case["n_kv_heads"], case["seed"]
    rank, rope_dim, value_dim = case["kv_lora_rank"], case["qk_rope_head_dim"], case["v_head_dim"]
    batch, longest = len(case["lengths"]), max(case["lengths"])
    q = numbers(seed, Q, (batch, heads, rank + rope_dim))
    rows = numbers(seed, LATENT, (batch, longest, rank))
    rope = numbers(seed, ROPE, (batch, longest, kv_heads if case["rope_per_kv_head"] else 1, rope_dim))
    scales = positive(numbers(seed, KEY_SCALES, (batch, longest, kv_heads)))
    value_map = numbers(seed, VALUE_MAP, (heads, value_dim, rank))
    value_bias = numbers(seed, VALUE_BIAS, (heads, value_dim))
    out = np.zeros((batch, heads, value_dim or rank), np.longdouble)
    lse = np.full((batch, heads), -np.inf, np.longdouble)
    for b, length in enumerate(case["lengths"]):
        for h in range(heads if length > 0 else 0):
            group = h // (heads // kv_heads)

            def key(t):
                turned = rope[b, t, group if case["rope_per_kv_head"] else 0]
                return np.concatenate([rows[b, t], turned]), scales[b, t, group] if case["key_scales"] else 1

            result, lse[b, h] = attend(case, q[b, h], length, key, lambda t: rows[b, t])
            if value_dim > 0:
                result = np.array([dot(row, result) for row in value_map[h]])
                result = result + (value_bias[h] if case["value_bias"] else 0)
            out[b, h] = result
    return out, lse


def grouped_case(name, lengths, n_heads, n_kv_heads, head_dim, scale, window=0, softcap=0.0):
    return {"name": name, "kind": "grouped", "lengths": lengths, "n_heads": n_heads, "n_kv_heads": n_kv_heads,
            "head_dim": head_dim, "scale": scale, "window": window, "softcap": softcap}  # fmt: skip


def latent_case(name, lengths, n_heads, rank, rope_dim, scale, n_kv_heads=1, rope_per_kv_head=False, key_scales=False,
                value_dim=0, value_bias=False, window=0, softcap=0.0):  # fmt: skip
    return {"name": name, "kind": "latent", "lengths": lengths, "n_heads": n_heads, "n_kv_heads": n_kv_heads,
            "kv_lora_rank": rank, "qk_rope_head_dim": rope_dim, "rope_per_kv_head": rope_per_kv_head,
            "key_scales": key_scales, "v_head_dim": value_dim, "value_bias": value_bias, "scale": scale,
            "window": window, "softcap": softcap}  # fmt: skip


CASES = [
    grouped_case("groups of three", [70, 1, 0, 64], 6, 2, 32, 0.1875),
    grouped_case("one KV head, window, soft cap", [33, 150], 5, 1, 48, 0.25, window=20, softcap=2.5),
    grouped_case("a KV head per head, window of one page", [65, 64, 200], 2, 2, 40, 0.125, window=64),
    latent_case("shared rotary key", [70, 3, 0], 5, 24, 16, 0.15625),
    latent_case("rotary key per KV head", [40, 65], 6, 32, 8, 0.15625, n_kv_heads=2, rope_per_kv_head=True),
    latent_case("key scales, window, soft cap", [31, 129], 6, 16, 8, 0.3125, n_kv_heads=3, key_scales=True, window=30,
                softcap=4.0),  # fmt: skip
    latent_case("all of it, value map and bias", [66, 0, 9], 4, 40, 16, 0.15625, n_kv_heads=2, rope_per_kv_head=True,
                key_scales=True, value_dim=24, value_bias=True, window=50, softcap=8.0),  # fmt: skip
    latent_case("value map without bias", [20], 3, 72, 8, 0.125, value_dim=16),
    latent_case("a rank of more than 512", [19], 2, 520, 8, 0.03125),
]


def digits(x):
    """All elements to 13 digits; null for the log-sum-exp of nothing."""
    return [None if np.isinf(each) else float(f"{each:.13g}") for each in x.ravel()]


def main():
    golden = []
    for seed, case in enumerate(CASES, 1):
        case = case | {"seed": seed}
        out, lse = (grouped if case["kind"] == "grouped" else latent)(case)
        golden.append(case | {"lse": digits(lse), "out": digits(out)})
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in golden)
    (HERE / "decode.json").write_text(f'{{"cases":[\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
