#!/usr/bin/env python3
"""Decode attention of one layer by the kernels that others would use: the peers that our own decode kernels are
measured against.

    decode_peers.py [--all | --sweep] [--attention gqa|mla] [--only TEXT] [--json FILE]    # on a CUDA device
    TRITON_INTERPRET=1 decode_peers.py --check    # the Triton kernels on odd shapes against fp64, on a CPU; not timed

Needs PyTorch and Triton: the environment of scripts/setup has both ($CINCH_CACHE/python, else ~/.cache/cinch/python);
--check needs numpy below 2.4 too, which Triton 3.6's interpreter does not go with. Without --all about a minute
and a half on an H100, the compilation of the Triton kernels included. `cinch bench kernels` measures our kernels, the
sdpa peers and the two products in one run; plot_decode.py and decode_table.py read the files of both. Peers:

  sdpa-flash, sdpa-cudnn           PyTorch's scaled_dot_product_attention, one backend each, enable_gqa
  sdpa-cudnn-rows, -efficient, -math    the query heads of a KV head given as its query tokens: the same without a mask,
                                   and the cache is not copied per head
  triton, triton-wide              triton_decode.py with the serving stacks' tile; with one of up to 64 heads
  cublas                           two batched products around a softmax, scores in fp32

Every peer's result is first compared with fp64 (of the same bf16 inputs, three requests): a relative Frobenius error
above 5e-3, or a number that is not finite anywhere, is reported as `wrong` and not timed. Then all copies of the random
inputs, together larger than three times the L2 cache (at least one copy), are decoded one after the other in one CUDA
graph; the time is the median of its replays divided by the copies, all launches included. The bandwidth of a copy is
PyTorch's, 1 GiB, read + written, measured in the same run. bench/results/README.md describes the lines of --json.
"""

import argparse
import dataclasses
import itertools
import json
import math
import sys
import time
import warnings

import torch
import torch.nn.functional as F
import triton
from torch.nn.attention import SDPBackend, sdpa_kernel

from decode_cases import all_cases, default_cases, error_of, gqa, make_inputs, mla
from device_timing import copy_gb_per_s, graph_of, identity, median_seconds
from triton_decode import PAGE, SERVING_HEADS, Blocks, SplitDecode, serving_blocks, wide_blocks

TOLERANCE = 5e-3  # relative Frobenius error; rounding of weights and results to bf16 alone gives about 2e-3


# A peer is a function of case and inputs that returns what decodes them: a callable with the result out (B, H, Dv).


def sdpa_peer(backends, as_rows):
    def make(case, inputs):
        k, v = inputs.k, inputs.v
        if backends == [SDPBackend.FLASH_ATTENTION] and case.attention == "mla":
            v = k  # it wants values as wide as keys; what it computes of the rotary columns is dropped
        heads = (case.n_kv_heads, case.group) if as_rows else (case.n_heads, 1)
        q = inputs.q.view(case.batch, *heads, case.key_dim)
        enable_gqa = not as_rows and case.group > 1

        def run():
            with sdpa_kernel(backends):
                out = F.scaled_dot_product_attention(q, k, v, scale=case.scale, enable_gqa=enable_gqa)
            return out.reshape(case.batch, case.n_heads, -1)[..., : case.value_dim]

        return run

    return make


def cublas_peer(case, inputs):
    q = inputs.q.view(-1, case.group, case.key_dim)
    k, v = inputs.k.flatten(0, 1), inputs.v.flatten(0, 1)
    scores = torch.empty(len(q), case.group, case.context, dtype=torch.float32, device=q.device)

    def run():
        torch.baddbmm(scores, q, k.mT, beta=0, alpha=case.scale, out_dtype=torch.float32, out=scores)
        weights = torch.softmax(scores, -1).to(v.dtype)
        return torch.bmm(weights, v).view(case.batch, case.n_heads, case.value_dim)

    return run


def triton_decode(case, inputs, blocks, splits=None):
    v = None if case.attention == "mla" else inputs.v
    tensors = (inputs.q, inputs.k, v, inputs.lengths, inputs.table)
    return SplitDecode(*tensors, case.scale, case.qk_rope_head_dim, blocks, case.context, splits)


def triton_peer(choose_blocks):
    def make(case, inputs):
        return triton_decode(case, inputs, choose_blocks(case.value_dim, case.group))

    return make


def with_value_map(inputs, run):
    """What decodes, and takes the latents to values where there is a map: one more batched product, as others do."""
    if inputs.value_map is None:
        return run
    return lambda: torch.bmm(run().transpose(0, 1), inputs.value_map.mT).transpose(0, 1)


DENSE_PEERS = {
    "sdpa-flash": sdpa_peer([SDPBackend.FLASH_ATTENTION], False),
    "sdpa-cudnn": sdpa_peer([SDPBackend.CUDNN_ATTENTION], False),
    "sdpa-cudnn-rows": sdpa_peer([SDPBackend.CUDNN_ATTENTION], True),
    "sdpa-efficient": sdpa_peer([SDPBackend.EFFICIENT_ATTENTION], True),
    "sdpa-math": sdpa_peer([SDPBackend.MATH], True),
    "cublas": cublas_peer,
}


def peers_of(case):
    """By layout. The wide tile only where the serving stacks' does not hold all heads; ragged requests are Triton's."""
    paged = {"triton": triton_peer(serving_blocks)}
    if case.group > SERVING_HEADS:
        paged["triton-wide"] = triton_peer(wide_blocks)
    return {"paged": paged} if case.ragged else {"dense": DENSE_PEERS | paged, "paged": paged}


def sweep_peers(case):
    """Triton with other tiles than those of serving_blocks and wide_blocks, to see what those are worth."""
    heads = [16, 32, 64][: 1 + (case.group > 16) + (case.group > 32)]
    tiles = [Blocks(*each) for each in itertools.product(heads, (32, 64), (4, 8), (2, 3, 4))]
    return {"paged": {f"triton {blocks}": triton_peer(lambda *_, blocks=blocks: blocks) for blocks in tiles}}


def sweep_cases():
    cases = [gqa(16, 8192, 4, 128), gqa(16, 8192, 4, 64)]
    return cases + [mla(64, 8192, h, r, 64) for h, r in ((32, 128), (32, 512), (128, 512))]


def measure(case, make, inputs):
    """The fields of one peer's line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SDPA warns of each reason why a backend does not cover a shape
            decodes = [make(case, each) for each in inputs]
            runs = [with_value_map(each, decode) for each, decode in zip(inputs, decodes)]
            error = error_of(case, inputs[0], runs[0](), sorted({0, case.batch // 2, case.batch - 1}))
            fields = {"error": error if math.isfinite(error) else None}
            if isinstance(decodes[0], SplitDecode):
                fields |= {"splits": decodes[0].splits, "blocks": str(decodes[0].blocks)}
            if not error <= TOLERANCE:
                return {"status": "wrong"} | fields
            graph = graph_of(runs)
            seconds = median_seconds(graph.replay) / len(runs)
    except triton.runtime.errors.OutOfResources as failure:
        return {"status": "not covered", "reason": str(failure)}
    except torch.cuda.OutOfMemoryError:
        return {"status": "out of memory"}
    except RuntimeError as failure:
        reason = (str(failure).strip() or type(failure).__name__).splitlines()[0][:200]
        covered = not reason.startswith(("No available kernel", "No viable backend"))
        return {"status": "failed" if covered else "not covered", "reason": reason}
    return {"status": "ok", "us": seconds * 1e6, "gb_per_s": case.cache_bytes / seconds * 1e-9} | fields


def run_case(case, all_peers, device, report):
    """Measures all peers of one layout on its inputs, then those of the next."""
    l2 = torch.cuda.get_device_properties(device).L2_cache_size
    copies = max(1, -(-3 * l2 // case.cache_bytes))
    for layout, peers in all_peers.items():
        try:
            inputs = make_inputs(case, copies, layout == "paged", device)
        except torch.cuda.OutOfMemoryError:
            report(case, "all", layout, {"status": "out of memory"})
            continue
        for name, make in peers.items():
            report(case, name, layout, measure(case, make, inputs))
            torch.cuda.empty_cache()
        del inputs
        torch.cuda.empty_cache()


class Report:
    """Prints a table and writes JSON lines."""

    def __init__(self, common, path):
        self.common = common
        self.file = open(path, "w", encoding="utf-8") if path else None
        versions = ", ".join(f"{key} {common[key]}" for key in ("driver", "torch", "triton", "commit"))
        print(f"{common['device']}, {versions}\ncopy of 1 GiB: {common['copy_gb_per_s']:.0f} GB/s read + written\n")
        print(f"{'case':36} {'peer':16} {'layout':6} {'us':>9} {'GB/s':>6} {'of copy':>7} {'error':>8}")

    def __call__(self, case, name, layout, fields):
        if fields["status"] == "ok":
            fields["share_of_copy"] = fields["gb_per_s"] / self.common["copy_gb_per_s"]
            us, rate, share, error = (fields[key] for key in ("us", "gb_per_s", "share_of_copy", "error"))
            text = f"{us:9.1f} {rate:6.0f} {share:7.1%} {error:8.1e}"
        else:
            text = "  ".join(str(fields[key]) for key in ("status", "reason", "error") if fields.get(key) is not None)
        if "splits" in fields:
            text += f"  {fields['splits']} splits, {fields['blocks']}"
        print(f"{str(case):36} {name:16} {layout:6} {text}", flush=True)
        if self.file:
            about = {"kernel": name, "layout": layout, "dtype": "bf16", "cache_bytes": case.cache_bytes}
            self.file.write(json.dumps(self.common | dataclasses.asdict(case) | about | fields) + "\n")
            self.file.flush()


def run_cases(args, cases):
    device = torch.device("cuda")
    report = Report(identity("decode_peers.py", device, args.commit), args.json)
    begin, done = time.perf_counter(), 0
    for case in cases:
        if time.perf_counter() - begin > args.seconds:
            break
        run_case(case, sweep_peers(case) if args.sweep else peers_of(case), device, report)
        done += 1
    print(f"\n{done} of {len(cases)} cases in {time.perf_counter() - begin:.0f} s", end="; ")
    print(f"copy of 1 GiB after them: {copy_gb_per_s(device):.0f} GB/s")


def plant_nan(inputs):
    """NaN in every slot of the cache that no request uses."""
    for request, length in enumerate(inputs.lengths.tolist()):
        for rows in (inputs.k, inputs.v):
            if inputs.table is None:
                rows[request, :, length:] = math.nan
            else:
                slots = torch.arange(inputs.table.shape[1] * PAGE, device=rows.device)[length:]
                rows[inputs.table[request].long()[slots // PAGE], slots % PAGE] = math.nan


def check():
    """Triton's kernels on small odd shapes: ragged lengths with an empty request, NaN in all unused slots."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype, limit = (torch.float32, 1e-5) if device.type == "cpu" else (torch.bfloat16, TOLERANCE)  # no bf16 in numpy
    tiles = {heads: Blocks(heads, 32 if heads == 64 else 64, 4, 3) for heads in (16, 32, 64)}
    cases = [(gqa(4, 200, 1, 64, 2), 16), (gqa(4, 200, 5, 64, 2), 16), (gqa(4, 200, 12, 48, 1), 16)]
    cases += [(gqa(4, 200, 7, 128, 2), 16), (gqa(4, 200, 20, 128, 2), 32), (mla(4, 200, 9, 96, 32), 16)]
    cases += [(mla(4, 200, 40, 64, 16), 32), (mla(4, 200, 72, 72, 24), 64)]
    wrong = 0
    for (case, heads), splits, paged in itertools.product(cases, (1, 3, 7), (False, True)):
        torch.manual_seed(splits)
        inputs = make_inputs(case, 1, paged, device, dtype)[0]
        inputs.lengths = torch.tensor([case.context, 0, 67, 128], dtype=torch.int32, device=device)
        plant_nan(inputs)
        error = error_of(case, inputs, triton_decode(case, inputs, tiles[heads], splits)(), range(case.batch))
        wrong += not error <= limit
        verdict = "" if error <= limit else "WRONG"
        print(f"{str(case):36} {'paged' if paged else 'dense'} {splits} splits, {tiles[heads]}: {error:.1e} {verdict}")
    print(f"{wrong} wrong" if wrong else "all right")
    return wrong != 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="the whole grid instead of the default cases")
    parser.add_argument("--sweep", action="store_true", help="only Triton, with many tiles, on a few cases")
    parser.add_argument("--attention", choices=["gqa", "mla"])
    parser.add_argument("--only", default="", help="only cases whose printed name contains this text")
    parser.add_argument("--seconds", type=float, default=math.inf, help="no new case is begun after this time")
    parser.add_argument("--json", help="file for one JSON line per case and peer")
    parser.add_argument("--commit", help="commit to record where the folder is no clone")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.check:
        return check()
    if not torch.cuda.is_available():
        sys.exit("decode_peers.py: no CUDA device; --check under TRITON_INTERPRET=1 runs the Triton kernels on a CPU")
    cases = sweep_cases() if args.sweep else all_cases() if args.all else default_cases()
    with torch.inference_mode():
        run_cases(args, [case for case in cases if args.attention in (None, case.attention) and args.only in str(case)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
