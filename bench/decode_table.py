#!/usr/bin/env python3
"""A Markdown table of decode times, for bench/results: one row per case, ours beside the fastest peer.

    decode_table.py FILE [MORE ...]

The files are what `cinch bench kernels --output`, decode_peers.py and decode_device_test write (bench/results/README.md).
Times are of the faster layout where a kernel has two, and of the cache's own format: peers have 16 bits. `ours / peer` below 1: ours is faster.
"""

import argparse
import json
import pathlib
import sys


def rows_of_report(text):
    """The rows of a report of `cinch bench --json`, each with what they share, or None where the text is no such."""
    try:
        report = json.loads(text)
    except json.JSONDecodeError:
        return None
    if not isinstance(report, dict) or "rows" not in report:
        return None
    rows = report.pop("rows")
    return [report | row for row in rows]


def read_lines(paths):
    """The measurements of reports and of JSON-lines files; what a program printed beside its lines is passed over."""
    lines = []
    for path in paths:
        text = pathlib.Path(path).read_text(encoding="utf-8")
        rows = rows_of_report(text)
        if rows is not None:
            lines += rows
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if not line.startswith("{"):
                continue
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError as error:
                sys.exit(f"{path}:{number}: {error}")
    return lines


def is_ours(line):
    return line.get("ours", line["program"] not in ("decode_peers.py", "decode_model.py"))


def format_of(line):
    """Of the cache: peers and programs of 16 bits do not say it."""
    return line.get("kv_format", "16 bit")


SHAPE = ["head_dim", "n_kv_heads", "kv_lora_rank", "qk_rope_head_dim", "n_heads", "batch", "context", "v_head_dim"]


def case_of(line):
    shape = (line.get(key) or 0 for key in SHAPE)
    return (line["attention"], *shape, bool(line.get("ragged")), format_of(line), line["device"])


def title(case):
    attention, head_dim, n_kv_heads, rank, rope_dim, n_heads, batch, context, v_head_dim, ragged, kv_format, _ = case
    heads = f"{n_kv_heads} x {head_dim}, g {n_heads // n_kv_heads}" if attention == "gqa" else f"{rank} + {rope_dim}"
    values = f", values {v_head_dim}" if v_head_dim else ""
    bits = "" if kv_format == "16 bit" else f", {kv_format}"
    return f"{attention} {heads}, H {n_heads}{values}{bits} | {batch} x {context}{' ragged' if ragged else ''}"


def fastest(lines):
    return min(lines, key=lambda line: line["us"], default=None)


def cells(line):
    """Time, kernel, and share of the copy measured in the line's own run."""
    if line is None:
        return "| |"
    share = line["cache_bytes"] / line["us"] * 1e-3 / line["copy_gb_per_s"]
    return f"{line['us']:.1f} | {line['kernel']}, {line['layout']} | {share:.0%}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", nargs="+")
    args = parser.parse_args()
    cases = {}
    for line in read_lines(args.lines):
        if line.get("status") == "ok" and "layout" in line:
            cases.setdefault(case_of(line), []).append(line)
    if not cases:
        sys.exit("decode_table.py: no line of a decode kernel")
    columns = ["case", "requests x tokens", "cache MB"]
    columns += ["ours us", "kernel", "of copy", "peer us", "peer", "of copy", "ours / peer"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for case, lines in sorted(cases.items()):
        ours, peer = (fastest([line for line in lines if is_ours(line) == mine]) for mine in (True, False))
        ratio = f"{ours['us'] / peer['us']:.2f}" if ours and peer else ""
        megabytes = lines[0]["cache_bytes"] * 1e-6
        print(f"| {title(case)} | {megabytes:.1f} | {cells(ours)} | {cells(peer)} | {ratio} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
