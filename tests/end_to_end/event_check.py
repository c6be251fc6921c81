"""Loads the event files of a folder with TensorBoard's own reader and compares every scalar with metrics.jsonl.

Usage: event_check.py METRICS.jsonl EVENTS_FOLDER
"""

import json
import math
import sys

import numpy
from tensorboard.backend.event_processing.event_accumulator import SCALARS, TENSORS, EventAccumulator


def same(found, expected):
    if expected is None:  # JSON has neither NaN nor infinity
        return not math.isfinite(found)
    return numpy.float32(found) == numpy.float32(expected)


def main(metrics, folder):
    lines = [json.loads(line) for line in open(metrics, encoding="utf-8")]
    accumulator = EventAccumulator(folder, size_guidance={SCALARS: 0, TENSORS: 0})
    accumulator.Reload()
    expected = {}
    for line in lines:
        for key, value in line.items():
            if key != "step":
                expected.setdefault("train/" + key, []).append((line["step"], value))
    tags = accumulator.Tags()["scalars"]
    faults = [] if sorted(tags) == sorted(expected) else [f"tags {sorted(tags)}, expected {sorted(expected)}"]
    for tag in set(tags) & set(expected):
        found = [(event.step, event.value) for event in accumulator.Scalars(tag)]
        steps = [step for step, _ in expected[tag]]
        if [step for step, _ in found] != steps:
            faults.append(f"{tag}: steps {[step for step, _ in found]}, expected {steps}")
            continue
        for (step, value), (_, wanted) in zip(found, expected[tag]):
            if not same(value, wanted):
                faults.append(f"{tag}, step {step}: {value}, expected {wanted}")
    for fault in faults:
        print(f"FAILED {fault}")
    if not lines:
        faults.append(f"{metrics} has no lines")
    print(f"{len(lines)} steps of {len(expected)} scalars: {'FAILED' if faults else 'equal'}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
