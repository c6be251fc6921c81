#!/usr/bin/env python3
"""Compares cinch with Hugging Face `tokenizers` on random texts and ids, and names what differs.

    differential.py TEXT_TEST [ROWS_PER_TOKENIZER [SEED [RANDOM_TOKENIZERS [REAL_TOKENIZER.json ...]]]]

TEXT_TEST is the built tests/text_test, which does the comparing. Not run by ctest: the golden cases are a small part of the same.
"""
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile

from tokenizers import Tokenizer

import cases
import stand_ins

binary = pathlib.Path(sys.argv[1]).resolve()
count = int(sys.argv[2]) if len(sys.argv) > 2 else 500
seed = int(sys.argv[3]) if len(sys.argv) > 3 else 1
tokenizers = {**stand_ins.named(), **stand_ins.odd()}
tokenizers.update({f"real{i}": Tokenizer.from_file(path) for i, path in enumerate(sys.argv[5:])})


def attempt(make, *arguments):
    """Odd components make `tokenizers` panic; there is nothing to compare with then."""
    try:
        return make(*arguments)
    except KeyboardInterrupt:
        raise
    except BaseException:
        return None


for i in range(int(sys.argv[4]) if len(sys.argv) > 4 else 100):
    if t := attempt(stand_ins.random_tokenizer, random.Random(f"{seed} tokenizer {i}")):
        tokenizers[f"random{i}"] = t
with tempfile.TemporaryDirectory() as name:
    folder, rows = pathlib.Path(name), {}
    for label, t in tokenizers.items():
        (folder / f"{label}.tokenizer.json").write_text(stand_ins.json_of(label, t))
        chance = random.Random(f"{seed} {label}")
        count_here = count if not label.startswith("random") else max(1, count // 10)
        rows[label] = [attempt(cases.encode_row, t, cases.random_bytes(chance, t)) for _ in range(count_here)]
        rows[label] += [attempt(cases.decode_row, t, chance) for _ in range(count_here // 4)]
        rows[label] = [row for row in rows[label] if row]
    (folder / "cases.json").write_text(json.dumps(rows, separators=(",", ":")))
    command = [str(binary), "--gtest_filter=SlowTokenizer.AgreesOnTheCasesOfTheDifferentialScript", "--gtest_brief=1"]
    sys.exit(subprocess.run(command, env={**os.environ, "CINCH_TEXT_CASES": name}).returncode)
