"""How the peers are timed on a CUDA device, and what identifies a measurement."""

import pathlib
import statistics
import subprocess

import torch
import triton


def median_seconds(run, fill=0.02):
    """Median seconds of `run` on the device: as many calls as take `fill` seconds, 5 to 50, after two not counted."""

    def timed():
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3

    timed()
    calls = min(50, max(5, int(fill / max(timed(), 1e-6))))
    return statistics.median(timed() for _ in range(calls))


def graph_of(runs):
    """A CUDA graph of all runs, one after the other."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what a library prepares at a first call must not fall into the capture
        for run in runs[:2]:
            run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in runs:
            run()
    return graph


def copy_gb_per_s(device):
    """GB read + written per second by PyTorch's copy of 1 GiB."""
    source = torch.randint(-128, 127, (1 << 30,), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / median_seconds(lambda: target.copy_(source), 0.05) * 1e-9


def output_of(*command):
    """First line that a command prints, "unknown" if it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def identity(program, device, commit):
    """The fields that all lines of a run share. commit: recorded where this folder is no clone, else None."""
    here = str(pathlib.Path(__file__).resolve().parent)
    return {
        "program": program,
        "device": torch.cuda.get_device_name(device),
        "driver": output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": commit or output_of("git", "-C", here, "rev-parse", "--short", "HEAD"),
        "copy_gb_per_s": copy_gb_per_s(device),
    }
