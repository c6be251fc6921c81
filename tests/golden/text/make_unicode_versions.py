#!/usr/bin/env python3
"""Prints the tables of text/unicode_versions.cpp: where the Unicode tables inside Hugging Face `tokenizers` are not those of Unicode 14.

    make_unicode_versions.py        (with a Python whose unicodedata is of Unicode 14)

1. Code points whose general category in its regular expressions (Oniguruma) differs, each range with an older code point of the same category
   and the same number of UTF-8 bytes. 2. Code points of Unicode 14 that its normalizers, which are older, leave alone.
"""
import unicodedata

from tokenizers import Regex, normalizers, pre_tokenizers

assert unicodedata.unidata_version == "14.0.0", unicodedata.unidata_version
CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co Cn".split()
POINTS = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]


def members(pattern):
    """All code points that match, by splitting the whole code space at matches."""
    split, found = pre_tokenizers.Split(Regex(pattern), "removed"), set()
    for base in range(0, len(POINTS), 4096):
        points = POINTS[base : base + 4096]
        kept = set()
        for _, (begin, end) in split.pre_tokenize_str("".join(map(chr, points))):
            kept.update(range(begin, end))
        found.update(c for i, c in enumerate(points) if i not in kept)
    return found


def category_ranges():
    new = {c: category for category in CATEGORIES for c in members(rf"\p{{{category}}}")}
    old = {c: unicodedata.category(chr(c)) for c in new}

    def stand_in(c):
        for distance in range(1, 0x110000):
            for other in (c - distance, c + distance):
                if old.get(other) == new[c] == new.get(other) and len(chr(other).encode()) == len(chr(c).encode()):
                    return other
        raise ValueError(hex(c))

    ranges = []
    for c in sorted(c for c in new if new[c] != old[c]):
        if ranges and ranges[-1][1] == c - 1 and ranges[-1][3] == new[c]:
            ranges[-1][1] = c
        else:
            ranges.append([c, c, stand_in(c), new[c]])
    return [f"{{0x{a:X}, 0x{b:X}, 0x{s:X}}}" for a, b, s, _ in ranges]


def unnormalized_ranges():
    def differs(form, text):
        return getattr(normalizers, form)().normalize_str(text) != unicodedata.normalize(form, text)

    found = set()
    for c in POINTS:
        texts = [chr(c)]
        if unicodedata.category(chr(c)).startswith("M"):
            texts += [f"a{mark}{chr(c)}{mark}" for mark in "\u0301\u0316"]
        if any(differs(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD") for text in texts):
            found.add(c)
    for c in list(found):  # the parts of a pair that it does not compose either
        parts = unicodedata.decomposition(chr(c)).split()
        if len(parts) == 2 and not parts[0].startswith("<") and unicodedata.normalize("NFC", chr(c)) == chr(c):
            found.add(int(parts[1], 16))
    ranges = []
    for c in sorted(found):
        if ranges and ranges[-1][1] == c - 1:
            ranges[-1][1] = c
        else:
            ranges.append([c, c])
    return [f"{{0x{a:X}, 0x{b:X}}}" for a, b in ranges]


for table in (category_ranges(), unnormalized_ranges()):
    print(",\n".join(table), end="\n\n")
