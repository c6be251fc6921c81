#!/usr/bin/env python3
"""Draws the time of decode attention against the true bytes of the cache, both logarithmic: one line per kernel, cache
format and layout, and the line of a copy at the bandwidth measured in the same run. Needs matplotlib.

    plot_decode.py OUT.png FILE [MORE ...] [--panel attention=mla,batch=16,... ...]

The files are what `cinch bench kernels --output`, decode_peers.py and decode_device_test write
(bench/results/README.md). A panel shows the lines with these
values; a kernel that was not measured, or was wrong, is missing in it. Where one kernel has several times for the same
bytes (batch 16 x 2048 tokens and 1 x 32768, or groups of query heads), all of them are drawn, the line goes through
their geometric mean. Without --panel: grouped-query attention over groups, batches and contexts; latents over ranks at
one size; one latent over batches and contexts.
"""

import argparse
import math
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib import ticker

from decode_table import format_of, is_ours, read_lines

PANELS = [
    "attention=gqa,head_dim=128,n_kv_heads=8",
    "attention=mla,batch=64,context=8192,n_heads=32,qk_rope_head_dim=64",
    "attention=mla,kv_lora_rank=512,qk_rope_head_dim=64,n_heads=32",
]
OURS = ["#d7191c", "#fd8d3c", "#7f0000", "#e31a8c", "#a65628", "#ffb000", "#ff7f7f", "#5c0a3c"]
PEERS = ["#1f78b4", "#33a02c", "#6a3d9a", "#878787", "#b15928", "#01665e", "#e7298a", "#e6ab02"]
MARKERS = {"dense": "o", "paged": "s"}


def wanted(line, panel):
    """True for a line with the panel's values; without a value map where the panel does not say otherwise."""
    values = {"v_head_dim": "0"} | dict(pair.split("=", 1) for pair in panel.split(","))
    return all(str(line.get(key, 0)) == value for key, value in values.items())


def geometric_mean(values):
    return math.exp(sum(map(math.log, values)) / len(values))


def name_of(line):
    """Kernel, and format of the cache where it is not 16 bits."""
    kv_format = format_of(line)
    return line["kernel"] if kv_format == "16 bit" else f"{line['kernel']} {kv_format}"


def colours(lines):
    """A colour per kernel and format, the same in all panels."""
    kernels = list(dict.fromkeys((is_ours(line), name_of(line)) for line in lines))
    ours = [kernel for mine, kernel in kernels if mine]
    peers = [kernel for mine, kernel in kernels if not mine]
    chosen = {(True, kernel): OURS[i % len(OURS)] for i, kernel in enumerate(ours)}
    return chosen | {(False, kernel): PEERS[i % len(PEERS)] for i, kernel in enumerate(peers)}


def label_ticks(axis, limits, unit, sep):
    """Powers of ten; over less than a factor of 30 they alone would leave the axis nearly bare."""
    axis.set_major_formatter(ticker.EngFormatter(unit, sep=sep))
    if limits[1] > 30 * limits[0]:
        axis.set_minor_formatter(ticker.NullFormatter())
        return
    axis.set_minor_locator(ticker.LogLocator(subs=(2, 3, 5)))
    axis.set_minor_formatter(ticker.EngFormatter(unit, sep=sep))
    axis.set_tick_params(which="minor", labelsize=7)


def draw(axes, lines, panel, colour_of):
    series = {}
    for line in lines:
        series.setdefault((is_ours(line), name_of(line), line["layout"], line["device"]), []).append(line)
    several = len({device for _, _, _, device in series}) > 1
    for (ours, kernel, layout, device), members in sorted(series.items(), key=lambda item: (not item[0][0], item[0])):
        times = {}
        for line in members:
            times.setdefault(line["cache_bytes"], []).append(line["us"])
        colour, sizes = colour_of[ours, kernel], sorted(times)
        label = f"{kernel}, {layout}" + (f", {device}" if several else "")
        middle = [geometric_mean(times[size]) for size in sizes]
        style = {"color": colour, "linewidth": 2.2 if ours else 1.1, "linestyle": "-" if layout == "paged" else "--"}
        axes.plot(sizes, middle, label=label, marker=MARKERS.get(layout, "^"), markersize=4, zorder=3 + ours, **style)
        for size, values in times.items():
            axes.plot([size] * len(values), values, ".", color=colour, markersize=3, alpha=0.5)
    ends = [pick(line["cache_bytes"] for line in lines) for pick in (min, max)]
    for device, copy in {line["device"]: line["copy_gb_per_s"] for line in lines}.items():
        label = f"copy, {copy:.0f} GB/s" + (f", {device}" if several else "")
        axes.plot(ends, [size / copy * 1e-3 for size in ends], color="black", linewidth=1, label=label)
    axes.set(xscale="log", yscale="log", xlabel="true bytes of the cache", ylabel="time of one layer's decode, us")
    label_ticks(axes.xaxis, axes.get_xlim(), "B", " ")
    label_ticks(axes.yaxis, axes.get_ylim(), "", "")
    axes.set_title(panel.replace(",", ", "), fontsize=9)
    axes.grid(True, which="both", linewidth=0.3, alpha=0.5)
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.11), ncols=3, frameon=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("lines", nargs="+")
    parser.add_argument("--panel", action="append", help="key=value,key=value,...; may be given several times")
    args = parser.parse_args()
    lines = [line for line in read_lines(args.lines) if line.get("status") == "ok" and "layout" in line]
    lines = [line for line in lines if not line.get("ragged")]
    chosen = []
    for panel in args.panel or PANELS:
        members = [line for line in lines if wanted(line, panel)]
        if members:
            chosen.append((panel, members))
        else:
            print(f"plot_decode.py: no line for the panel {panel}", file=sys.stderr)
    if not chosen:
        sys.exit("plot_decode.py: nothing to draw")
    figure, all_axes = plt.subplots(1, len(chosen), figsize=(6.5 * len(chosen), 6.5), squeeze=False)
    colour_of = colours(lines)
    for axes, (panel, members) in zip(all_axes[0], chosen):
        draw(axes, members, panel, colour_of)
    devices = sorted({(line["device"], line["driver"]) for _, members in chosen for line in members})
    figure.suptitle("; ".join(f"{device}, driver {driver}" for device, driver in devices), fontsize=10)
    figure.tight_layout()
    figure.savefig(args.out, dpi=110)
    return 0


if __name__ == "__main__":
    sys.exit(main())
