#!/usr/bin/env python3
"""Writes the golden file of tests/convert/latent_golden_test.cpp: the latent method's moments, rotary slots, latent, up-maps and refits on random
layers, by the formulas of docs/conversion.md as directly as numpy states them (loops over tokens and keys, dense solves), without regard for speed.

    python3 tests/golden/convert/make_golden.py        # numpy 2.4
"""
import json
import pathlib

import numpy as np

HERE = pathlib.Path(__file__).parent
TAIL, CONTEXT = 0.25, 8192


def damped(a, relative):
    return a + relative * np.trace(a) / len(a) * np.eye(len(a))


def root(a):
    values, vectors = np.linalg.eigh(a)
    return vectors @ np.diag(np.sqrt(values)) @ vectors.T


class Layer:
    """A random attention layer, its original stream and another one for the converted model."""

    def __init__(self, seed, heads, kv_heads, dim, hidden, tokens, windows, theta, bias=False, qk_norm=False, softcap=0.0, window=0):
        rng = np.random.default_rng(seed)
        self.heads, self.kv_heads, self.dim, self.hidden, self.tokens, self.theta = heads, kv_heads, dim, hidden, tokens, theta
        self.rep, self.scale, self.softcap, self.window = heads // kv_heads, dim**-0.5, softcap, window
        self.weights = {"q_proj": rng.standard_normal((heads * dim, hidden)) * 0.4, "k_proj": rng.standard_normal((kv_heads * dim, hidden)) * 0.4,
                        "v_proj": rng.standard_normal((kv_heads * dim, hidden)) * 0.4, "o_proj": rng.standard_normal((hidden, heads * dim)) * 0.4}
        if bias:
            for name, rows in (("q_bias", heads * dim), ("k_bias", kv_heads * dim), ("v_bias", kv_heads * dim)):
                self.weights[name] = rng.standard_normal(rows) * 0.4
        if qk_norm:
            self.weights["q_norm"], self.weights["k_norm"] = 1 + 0.3 * rng.standard_normal((2, dim))
        self.qk_norm, self.eps = qk_norm, 1e-6
        self.teacher = rng.standard_normal((windows, tokens, hidden))
        self.teacher[:, 0] *= 5  # a first token that stands out
        self.student = self.teacher + 0.1 * rng.standard_normal((windows, tokens, hidden))
        exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
        # In single precision, as transformers has it; numpy's own power of that type is rounded by the machine's fashion.
        power = (np.float64(np.float32(theta)) ** exponents.astype(np.float64)).astype(np.float32)
        self.freq = (np.float32(1) / power).astype(np.float64)
        self.o = self.weights["o_proj"].reshape(hidden, heads, dim).transpose(1, 0, 2)

    def project(self, x):
        """q per head, keys without 1/rms (with the norm's gain), 1/rms per token and KV head, v."""
        w = self.weights
        q, k, v = (x @ w[n + "_proj"].T + w.get(n + "_bias", 0) for n in "qkv")
        q, k, v = q.reshape(-1, self.heads, self.dim), k.reshape(-1, self.kv_heads, self.dim), v.reshape(-1, self.kv_heads, self.dim)
        scale = np.ones(k.shape[:2])
        if self.qk_norm:
            q = q / np.sqrt((q**2).mean(-1, keepdims=True) + self.eps) * w["q_norm"]
            scale = 1 / np.sqrt((k**2).mean(-1) + self.eps)
            k = k * w["k_norm"]
        return q, k, scale, v

    def planes(self, x):
        return x[..., : self.dim // 2] + 1j * x[..., self.dim // 2 :]

    def softmax(self, scores):
        """Probabilities of one head and the cap's slopes, from q . k (T, T)."""
        logits, slope = scores * self.scale, np.ones_like(scores)
        if self.softcap:
            slope = 1 - np.tanh(logits / self.softcap) ** 2
            logits = self.softcap * np.tanh(logits / self.softcap)
        p = np.zeros_like(logits)
        for t in range(len(p)):
            first = max(0, t - self.window + 1) if self.window else 0
            e = np.exp(logits[t, first : t + 1] - logits[t, first : t + 1].max())
            p[t, first : t + 1] = e / e.sum()
        return p, slope

    def scores(self, q, k, scale):
        """q (T, D) and k (T, D) of one head."""
        t = np.arange(self.tokens)
        turn = np.exp(1j * np.outer(t, self.freq))
        return np.real((self.planes(q) * turn).conj() @ (self.planes(k) * turn).T) * scale


def moments(layer):
    h, d, width = layer.heads, layer.dim, 2 * layer.kv_heads * layer.dim
    m = dict(joint=np.zeros((width, width)), mean=np.zeros(width), query=np.zeros((h, d, d)), keys=np.zeros((h, width, width)),
             averages=np.zeros((h, width, width)), output=np.zeros((h, d, d)), output_mean=np.zeros((h, d)), lags=np.zeros((h, layer.tokens)), energy=0.0)
    for x in layer.teacher:
        q, k, scale, v = layer.project(x)
        z = np.concatenate([k.reshape(len(x), -1), v.reshape(len(x), -1)], 1)
        m["joint"] += z[1:].T @ z[1:]
        m["mean"] += z[1:].sum(0)
        y = np.zeros_like(x)
        for i in range(h):
            kv = i // layer.rep
            p, slope = layer.softmax(layer.scores(q[:, i], k[:, kv], scale[:, kv]))
            o = p @ v[:, kv]
            metric = layer.o[i].T @ layer.o[i]
            y += o @ layer.o[i].T
            for t in range(len(x)):
                for s in range(t + 1):
                    away = v[s, kv] - o[t]
                    w = p[t, s] ** 2 * (away @ metric @ away) * slope[t, s] ** 2 * scale[s, kv] ** 2
                    m["query"][i] += w * np.outer(q[t, i], q[t, i])
                    m["keys"][i] += w * np.outer(z[s], z[s])
                    if s > 0:
                        m["lags"][i, t - s] += w
            m["averages"][i] += (p @ z).T @ (p @ z)
            m["output"][i] += o.T @ o
            m["output_mean"][i] += o.sum(0)
        m["energy"] += (y[1:] ** 2).sum()
    n, later = layer.teacher.shape[0] * layer.tokens, layer.teacher.shape[0] * (layer.tokens - 1)
    for name in ("query", "keys", "averages", "output", "output_mean", "lags"):
        m[name] /= n
    for name in ("joint", "mean", "energy"):
        m[name] /= later
    return m


def groups(freq):
    result, f = [], 0
    while f < len(freq):
        size = 1 if freq[f] >= 0.07 else 2 if freq[f] >= 0.004 else 4
        if len(freq) > 1:  # the frequencies of a group lie within a factor of three
            near = min(f + 1, len(freq) - 1)
            size = max(1, min(size, 1 + int(np.log(3) / np.log(freq[near - 1] / freq[near]))))
        result.append(list(range(f, min(f + size, len(freq)))))
        f += size
    return result


def phi(layer, lags, x):
    """E e^{-ixD} of one head."""
    context = min(CONTEXT, layer.window) if layer.window else CONTEXT
    law = np.zeros(context)
    seen = lags[:context]
    law[: len(seen)] = (1 - TAIL) * seen / seen.sum()
    falling = 1 / (1 + np.arange(context))
    law += TAIL * falling / falling.sum()
    return np.exp(-1j * x * np.arange(context)) @ law


def slots(layer, m, rotary_dim):
    """Complex maps of all components: slots first. Keys (n, K, P), queries per head (H, n, P), and the slots' frequencies."""
    k, h, p, d = layer.kv_heads, layer.heads, layer.dim // 2, layer.dim
    joint = m["joint"][: k * d, : k * d].reshape(k, d, k, d)
    q2 = np.array([[m["query"][i, j, j] + m["query"][i, j + p, j + p] for j in range(p)] for i in range(h)])
    weight = np.array([q2[kv * layer.rep : (kv + 1) * layer.rep].sum(0) for kv in range(k)])
    weight = weight + 1e-2 * weight.mean(1, keepdims=True)
    found = []
    for members in groups(layer.freq):
        index = [(kv, j) for kv in range(k) for j in members]
        cov = np.zeros((len(index), len(index)), complex)
        for a, (ka, ja) in enumerate(index):
            for b, (kb, jb) in enumerate(index):
                cov[a, b] = (joint[ka, ja, kb, jb] + joint[ka, ja + p, kb, jb + p]) + 1j * (joint[ka, ja + p, kb, jb] - joint[ka, ja, kb, jb + p])
        dm = np.sqrt(np.array([weight[kv, j] for kv, j in index]))
        values, vectors = np.linalg.eigh(dm[:, None] * cov * dm)
        tk, tq = vectors.conj().T * dm, vectors.conj().T / dm
        f = len(members)
        tries = [layer.freq[members[0]]] if f == 1 else np.exp(np.linspace(np.log(layer.freq[members[0]]), np.log(layer.freq[members[-1]]), 4 * f + 1))
        kept = [sum(q2[i, j] * cov[index.index((i // layer.rep, j)), index.index((i // layer.rep, j))].real
                    * abs(phi(layer, m["lags"][i], layer.freq[j] - w)) ** 2 for i in range(h) for j in members) for w in tries]
        star = tries[int(np.argmax(kept))]
        for n in range(len(index)):
            gain, key, plain, turned = 0.0, np.zeros((k, p), complex), np.zeros((h, p), complex), np.zeros((h, p), complex)
            for a, (kv, j) in enumerate(index):
                key[kv, j] = tk[n, a]
                for i in range(kv * layer.rep, (kv + 1) * layer.rep):
                    rho, c = phi(layer, m["lags"][i], layer.freq[j] - star), phi(layer, m["lags"][i], layer.freq[j])
                    gain += abs(tq[n, a]) ** 2 * q2[i, j] * values[n] * (abs(rho) ** 2 - abs(c) ** 2)
                    turned[i, j], plain[i, j] = tq[n, a] * rho.conj(), tq[n, a] * c.conj()
            found.append((gain, star, key, turned, plain))
    found.sort(key=lambda x: -x[0])
    chosen = sorted(found[: rotary_dim // 2], key=lambda x: -x[1])
    return chosen, found[rotary_dim // 2 :]


def rows(c):
    """A complex functional on planes (..., P) as two real rows on (..., D)."""
    return np.stack([np.concatenate([c.real, -c.imag], -1), np.concatenate([c.imag, c.real], -1)])


def solve(layer, rank, rotary_dim):
    m = moments(layer)
    chosen, rest = slots(layer, m, rotary_dim)
    k, h, d = layer.kv_heads, layer.heads, layer.dim
    key_width = k * d

    def key_rows(components):
        return np.concatenate([rows(c[2]).reshape(2, key_width) for c in components])

    def query_rows(components, which):
        return np.stack([np.concatenate([rows(c[which][i]) for c in components]) for i in range(h)])

    rotary_key, rest_key = key_rows(chosen), key_rows(rest)
    rotary_query, rest_query = query_rows(chosen, 3), query_rows(rest, 4)
    n_keys = len(rest_key)
    z_map = np.zeros((n_keys + key_width, 2 * key_width))
    z_map[:n_keys, :key_width], z_map[n_keys:, key_width:] = rest_key, np.eye(key_width)
    key_metric = sum(b @ q @ b.T for b, q in zip(rest_query, m["query"])) * layer.scale**2
    value_metric = np.zeros((key_width, key_width))
    for i in range(h):
        own = slice((i // layer.rep) * d, (i // layer.rep + 1) * d)
        metric = layer.o[i].T @ layer.o[i]
        values = slice(key_width + own.start, key_width + own.stop)
        cov_v = m["joint"][values, values] - np.outer(m["mean"][values], m["mean"][values])
        cov_o = m["output"][i] - np.outer(m["output_mean"][i], m["output_mean"][i])
        value_metric[own, own] += metric * np.trace(metric @ cov_o) / np.trace(metric @ cov_v)
    t = np.zeros((n_keys + key_width,) * 2)
    t[:n_keys, :n_keys], t[n_keys:, n_keys:] = root(damped(key_metric, 1e-2)), root(damped(value_metric, 1e-2))
    values, vectors = np.linalg.eigh(t @ z_map @ m["joint"] @ z_map.T @ t)
    basis = vectors[:, ::-1][:, :rank]
    encode, decode = basis.T @ t @ z_map, np.linalg.inv(t) @ basis
    key_up, value_up = np.zeros((h, d, rank)), np.zeros((h, d, rank))
    for i in range(h):
        kv = i // layer.rep
        own = slice(key_width + kv * d, key_width + (kv + 1) * d)

        def fit(start, gram, cross):
            # Least squares on [sqrt(gram); sqrt(ridge)]: the ridge pulls to the start.
            ridge = 1e-6 * np.trace(gram) / rank
            return (cross + ridge * start) @ np.linalg.inv(gram + ridge * np.eye(rank))

        key_up[i] = fit(rest_query[i].T @ decode[:n_keys], encode @ m["keys"][i] @ encode.T,
                        rest_query[i].T @ rest_key @ m["keys"][i][:key_width] @ encode.T)
        value_up[i] = fit(decode[n_keys:][kv * d : (kv + 1) * d], encode @ m["averages"][i] @ encode.T, m["averages"][i][own] @ encode.T)
    inv_freq = np.array([c[1] for c in chosen])
    start = np.concatenate([key_up.transpose(0, 2, 1), rotary_query], 1)
    refitted = query_refit(layer, encode, rotary_key, inv_freq, start, damping=1.0)
    o, o_bias = output_refit(layer, encode, rotary_key, inv_freq, refitted, value_up, ridge=1e-2)

    # Bases of the latent and phases of the slots are free: what they do together is not.
    def through(query):
        latent = np.stack([a[:rank].T @ encode for a in query])
        rotary = np.stack([sum(a[rank + 2 * s : rank + 2 * s + 2].T @ rotary_key[2 * s : 2 * s + 2] for s in range(rotary_dim // 2)) for a in query])
        return latent, rotary

    latent, rotary = through(start)
    refit_latent, refit_rotary = through(refitted)
    kept = vectors[:, ::-1][:, :rank] @ np.diag(values[::-1][:rank]) @ vectors[:, ::-1][:, :rank].T
    whole = t @ z_map @ m["joint"] @ z_map.T @ t
    shares = [np.trace(kept[s, s]) / np.trace(whole[s, s]) for s in (slice(0, n_keys), slice(n_keys, None))]
    return {"query": m["query"], "lags": m["lags"], "energy": np.array([m["energy"]]), "inv_freq": inv_freq, "latent": latent, "rotary": rotary,
            "values": value_up @ encode, "kept": np.array(shares), "refit_latent": refit_latent, "refit_rotary": refit_rotary, "o": o, "o_bias": o_bias}


def features(layer, x, encode, rotary_key):
    q, k, scale, v = layer.project(x)
    z = np.concatenate([k.reshape(len(x), -1), v.reshape(len(x), -1)], 1)
    pairs = k.reshape(len(x), -1) @ rotary_key.T
    return q, k, scale, v, z @ encode.T, pairs[:, 0::2] + 1j * pairs[:, 1::2]


def query_refit(layer, encode, rotary_key, inv_freq, start, damping):
    """Dense normal equations of the quadratic, per head; all positions count."""
    rank, d = len(encode), layer.dim
    width = start.shape[1]
    turn = np.exp(1j * np.outer(np.arange(layer.tokens), inv_freq))
    result = np.zeros_like(start)
    for i in range(layer.heads):
        kv = i // layer.rep
        hessian, right, n = np.zeros((width * d, width * d)), np.zeros(width * d), 0
        s_latent, s_pairs, q_moment = np.zeros((rank, rank)), np.zeros(len(inv_freq)), np.zeros((d, d))
        for x in layer.teacher:
            q, k, scale, v, c, pairs = features(layer, x, encode, rotary_key)
            scores = layer.scores(q[:, i], k[:, kv], scale[:, kv])
            p, slope = layer.softmax(scores)
            for t in range(layer.tokens):
                # The score of key s is f_s . (A q): its features, seen from the query's position.
                relative = pairs * turn * turn[t].conj()
                f = np.zeros((layer.tokens, width))
                f[:, :rank], f[:, rank::2], f[:, rank + 1 :: 2] = c, relative.real, relative.imag
                f = f * scale[:, kv, None] * slope[t][:, None]
                error = scores[t] * slope[t] - f @ (start[i] @ q[t, i])
                f, error = f - p[t] @ f, error - p[t] @ error
                f_outer = f.T @ (p[t][:, None] * f)
                hessian += np.kron(f_outer, np.outer(q[t, i], q[t, i]))
                right += np.kron(f.T @ (p[t] * error), q[t, i])
                s_latent += f_outer[:rank, :rank]
                fixed = np.zeros((layer.tokens, 2 * len(inv_freq)))
                fixed[:, 0::2], fixed[:, 1::2] = (pairs * turn).real, (pairs * turn).imag
                fixed = fixed * scale[:, kv, None] * slope[t][:, None]
                power = p[t] @ fixed**2 - (p[t] @ fixed) ** 2
                s_pairs += (power[0::2] + power[1::2]) / 2
                q_moment += np.outer(q[t, i], q[t, i])
                n += 1
        s = np.zeros((width, width))
        s[:rank, :rank], s[rank:, rank:] = damped(s_latent / n, 1e-4), damped(np.diag(np.repeat(s_pairs / n, 2)), 1e-4)
        change = np.linalg.solve(hessian / n + damping * np.kron(s, damped(q_moment / n, 1e-3)), right / n)
        result[i] = start[i] + change.reshape(width, d)
    return result


def output_refit(layer, encode, rotary_key, inv_freq, query, value_up, ridge):
    turn = np.exp(1j * np.outer(np.arange(layer.tokens), inv_freq))
    rank = len(encode)
    all_features, all_errors = [], []
    for x, student in zip(layer.teacher, layer.student):
        q, k, scale, v = layer.project(x)
        y = np.zeros_like(x)
        for i in range(layer.heads):
            kv = i // layer.rep
            y += layer.softmax(layer.scores(q[:, i], k[:, kv], scale[:, kv]))[0] @ v[:, kv] @ layer.o[i].T
        q, k, scale, v, c, pairs = features(layer, student, encode, rotary_key)
        outputs = []
        for i in range(layer.heads):
            a = q[:, i] @ query[i].T
            b = (a[:, rank::2] + 1j * a[:, rank + 1 :: 2]) * turn
            scores = (a[:, :rank] @ c.T + np.real(b.conj() @ (pairs * turn).T)) * scale[:, i // layer.rep]
            outputs.append(layer.softmax(scores)[0] @ c @ value_up[i].T)
        f = np.concatenate(outputs, 1)
        all_features.append(f)
        all_errors.append(y - f @ np.concatenate(list(layer.o.transpose(0, 2, 1))))
    f, e = np.concatenate(all_features), np.concatenate(all_errors)
    penalty = ridge * (f**2).sum(0).mean()
    mean_f, mean_e = f.mean(0), e.mean(0)
    f0, e0 = f - mean_f, e - mean_e
    change = np.linalg.solve(f0.T @ f0 + penalty * np.eye(f.shape[1]), f0.T @ e0)
    o = layer.o + change.reshape(layer.heads, layer.dim, -1).transpose(0, 2, 1)
    return o, mean_e - mean_f @ change


def main():
    cases = {
        "gqa": (Layer(1, heads=4, kv_heads=2, dim=16, hidden=18, tokens=18, windows=3, theta=1e5), 13, 12),
        "mha": (Layer(2, heads=3, kv_heads=3, dim=12, hidden=14, tokens=15, windows=2, theta=1e4, bias=True), 11, 6),
        "nine_heads": (Layer(3, heads=9, kv_heads=3, dim=6, hidden=16, tokens=14, windows=3, theta=5e5, bias=True, qk_norm=True, softcap=2.0, window=9),
                       13, 10),
    }
    tensors = {}
    for name, (layer, rank, rotary_dim) in cases.items():
        numbers = [layer.heads, layer.kv_heads, layer.dim, layer.hidden, rank, rotary_dim, layer.theta, layer.softcap, layer.window, layer.scale, layer.eps]
        tensors[f"{name}.numbers"] = np.array(numbers, dtype=np.float64)
        for key, value in {**layer.weights, "teacher": layer.teacher, "student": layer.student}.items():
            tensors[f"{name}.in.{key}"] = value
        for key, value in solve(layer, rank, rotary_dim).items():
            tensors[f"{name}.out.{key}"] = value
    header, offset = {}, 0
    for key, value in tensors.items():
        header[key] = {"dtype": "F64", "shape": list(value.shape), "data_offsets": [offset, offset + value.nbytes]}
        offset += value.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(np.ascontiguousarray(value, dtype="<f8").tobytes() for value in tensors.values())
    (HERE / "latent.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + body)


if __name__ == "__main__":
    main()
