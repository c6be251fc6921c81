#!/usr/bin/env python3
"""Makes the tokenizers of stand_ins.py and records the ids and texts that Hugging Face `tokenizers` gives with them for hard and random texts.

    make_golden.py OUTPUT_FOLDER [ASSETS_FOLDER]

Writes <name>.tokenizer.json, cases.json (see cases.py) and unicode.json (character classes and normal forms over all code points); with the
assets also real.json (number and SHA-256 of the ids of real tokenizers over real texts, ids as little-endian u32, and of the decoded text).
"""
import hashlib
import json
import pathlib
import random
import struct
import sys

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

import cases
import stand_ins

out = pathlib.Path(sys.argv[1])
FIXED = [t.encode() for t in [
    "", " ", "Hello world", " leading space", "two  spaces   three", "tabs\tand\nnewlines\r\n\r\n end  ", "It's we'll I'VE they'd O'Neil",
    "1234567890123 3.14159 1,000,000 x2y3", "emoji 😀👍🏽 family 👩‍👩‍👧 flag 🇩🇪", "漢字かな交じり文 한국어 Привет مرحبا ١٢٣ Ⅷ ½ ²", "<s> and </s> and<s>glued<|sep|>x <|sep|> y",
    "<|sep|>", "e\u0301 \u00e9 \ufb01 \u212b", "\u00a0nbsp\u3000wide\u2028line\u200bzero\ufeff", "▁under ▁▁ Ġ Ċ <0x41>", "\x00\x01\x7f", "foo_bar.baz(qux){}[];:'\"\\/|~`!@#$%^&*",
    "    indented code\n        more", "a" * 300, "ab" * 200 + " " + "long" * 60, "\u180e mvs \u0897 \u1c89 \U000323af1", "it'\u017f K\u212a",
]] + [b"bad \xff\xfe bytes", b"cut \xe2\x82", b"\xf0\x9f\x98 z \xc0\xaf \xed\xa0\x80 end", b"\x80\x80abc"]
CLASSES = [r"\w", r"\W", r"\s", r"\S", r"\d", r"\D", r"\h", r"[\w]", r"[^\w\s]", r"[^\s\p{L}\p{N}]", r"\p{L}", r"\p{N}", r"\p{M}", r"\p{P}", r"\p{S}", r"\p{Z}", r"\p{Lu}", r"\p{Ll}", r"\p{Lo}", r"\p{Nd}", r"\P{L}", r"\p{^L}", r"(?i:s)", ".", r"\p{Greek}"]


def all_code_points():
    return [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]


def class_members(pattern):
    split, found = pre_tokenizers.Split(Regex(pattern), "removed"), []
    points = all_code_points()
    for base in range(0, len(points), 4096):
        chunk = points[base : base + 4096]
        kept = set()
        for _, (begin, end) in split.pre_tokenize_str("".join(map(chr, chunk))):
            kept.update(range(begin, end))
        found += [c for i, c in enumerate(chunk) if i not in kept]
    return found


def digest(values):
    return hashlib.sha256(struct.pack(f"<{len(values)}I", *values)).hexdigest()


def normal_form(name):
    """Every code point alone, and between marks of two combining classes."""
    normalizer = getattr(normalizers, name)()
    text = "".join(normalizer.normalize_str(t) + "\n" for c in all_code_points() for t in (chr(c), f"a\u0301{chr(c)}\u0316\u0301"))
    return hashlib.sha256(text.encode()).hexdigest()


def real_rows(assets):
    for tokenizer in ("tokenizers/gpt2/tokenizer.json", "tokenizers/llama2/tokenizer.json"):
        t = Tokenizer.from_file(str(assets / tokenizer))
        for text in ("text/wikitext2/valid.txt", "text/wikitext2/test.txt", "text/tinyshakespeare.txt", "text/tinystories/tinystories_v2.clean.jsonl"):
            ids = t.encode((assets / text).read_bytes().decode("utf-8", errors="replace"), add_special_tokens=False).ids
            decoded = hashlib.sha256(t.decode(ids, skip_special_tokens=False).encode()).hexdigest()
            yield {"tokenizer": tokenizer, "text": text, "count": len(ids), "sha256": digest(ids), "decoded_sha256": decoded}


rows = {}
for name, t in {**stand_ins.named(), **stand_ins.odd()}.items():
    (out / f"{name}.tokenizer.json").write_text(stand_ins.json_of(name, t))
    chance = random.Random(name)
    rows[name] = [cases.encode_row(t, raw) for raw in FIXED if len(raw) < 250 or name in stand_ins.named()]
    rows[name] += [cases.encode_row(t, cases.random_bytes(chance, t)) for _ in range(16)]
    rows[name] += [cases.decode_row(t, chance) for _ in range(8)]
(out / "cases.json").write_text(json.dumps(rows, ensure_ascii=True, separators=(",", ":")))
classes = {pattern: {"count": len(members), "sha256": digest(members)} for pattern in CLASSES for members in [class_members(pattern)]}
forms = {name: normal_form(name) for name in ("NFC", "NFD", "NFKC", "NFKD")}
(out / "unicode.json").write_text(json.dumps({"classes": classes, "normal_forms": forms}, indent=1) + "\n")
if len(sys.argv) > 2:
    (out / "real.json").write_text(json.dumps(list(real_rows(pathlib.Path(sys.argv[2]))), indent=1) + "\n")
