#!/usr/bin/env python3
"""Makes small tokenizers from the components of real ones with Hugging Face `tokenizers`, and records the ids it gives for hard texts.

    make_golden.py OUTPUT_FOLDER [ASSETS_FOLDER]

Writes <name>.tokenizer.json and cases.json; with the assets also real.json (number and SHA-256 of the ids of real tokenizers over real texts;
ids as little-endian u32).
"""
import hashlib
import json
import pathlib
import struct
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

out = pathlib.Path(sys.argv[1])
TRAINING = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind; it's used to foxes that'll jump 12 times in 2024.",
    "Once upon a time there was a little girl named Lily. She loved to play in the garden, and she'd sing all day long.",
    "def add(a, b):\n    return a + b\n\nprint(add(1234567890, 0.5))\n\tdone\r\n",
    "Wir hören die Züge über die Brücke fahren. Déjà vu, naïve café, coöperation.",
    "漢字とかなの文。한국어 문장입니다. Привет, мир! مرحبا بالعالم ١٢٣",
] * 4
CASES = [t.encode() for t in [
    "", " ", "Hello world", " leading space", "two  spaces   three", "tabs\tand\nnewlines\r\n\r\n end  ", "It's we'll I'VE they'd O'Neil",
    "1234567890123 3.14159 1,000,000 x2y3", "emoji 😀👍🏽 family 👩‍👩‍👧 flag 🇩🇪", "漢字かな交じり文 한국어 Привет مرحبا ١٢٣ Ⅷ ½ ²", "<s> and </s> and<s>glued<|sep|>x <|sep|> y",
    "<|sep|>", "e\u0301 \u00e9 \ufb01 \u212b", "\u00a0nbsp\u3000wide\u2028line\u200bzero\ufeff", "▁under ▁▁ Ġ Ċ <0x41>", "\x00\x01\x7f", "foo_bar.baz(qux){}[];:'\"\\/|~`!@#$%^&*",
    "    indented code\n        more", "a" * 300, "ab" * 200 + " " + "long" * 60,
]] + [b"bad \xff\xfe bytes", b"cut \xe2\x82", b"\xf0\x9f\x98 z \xc0\xaf \xed\xa0\x80 end", b"\x80\x80abc"]

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def byte_level(pre, normalizer=None, bos=False, ignore_merges=False):
    t = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    t.pre_tokenizer = pre
    if normalizer:
        t.normalizer = normalizer
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(TRAINING, trainers.BpeTrainer(vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<s>", "</s>"], show_progress=False))
    t.add_special_tokens([AddedToken("<|sep|>", special=True, normalized=False)])
    if bos:
        t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", t.token_to_id("<s>"))])])
    return t


def spm(normalizer, pre, decoder, separator):
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if normalizer:
        t.normalizer = normalizer
    if pre:
        t.pre_tokenizer = pre
    t.decoder = decoder
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    t.train_from_iterator(TRAINING, trainers.BpeTrainer(vocab_size=560, special_tokens=special, limit_alphabet=60, show_progress=False))
    data = json.loads(t.to_str())  # byte tokens are ordinary vocabulary in real files
    data["added_tokens"] = [a for a in data["added_tokens"] if not a["content"].startswith("<0x")]
    t = Tokenizer.from_str(json.dumps(data))
    t.add_special_tokens([separator])
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return t


fallback = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
plain_separator = AddedToken("<|sep|>", special=True, normalized=False)
tokenizers = {
    "gpt2": byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "llama3": byte_level(pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]), bos=True, ignore_merges=True),
    "qwen2": byte_level(pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]), normalizer=normalizers.NFC()),
    "smollm": byte_level(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])),
    "llama2": spm(normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None, decoders.Sequence(fallback + [decoders.Strip(" ", 1, 0)]), AddedToken("<|sep|>", special=True, normalized=True)),
    "mistral": spm(None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False), decoders.Sequence(fallback + [decoders.Strip(" ", 1, 0)]), plain_separator),
    "gemma": spm(normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"), decoders.Sequence(fallback), plain_separator),
    "phi3": spm(normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None, decoders.Sequence(fallback + [decoders.Strip(" ", 1, 0)]), AddedToken("<|sep|>", special=True, normalized=False, rstrip=True)),
}
cases = {}
for name, t in tokenizers.items():
    (out / f"{name}.tokenizer.json").write_text(t.to_str())
    rows = []
    for raw in CASES:
        text = raw.decode("utf-8", errors="replace")
        ids = t.encode(text, add_special_tokens=False).ids
        rows.append({"hex": raw.hex(), "ids": ids, "with_special": t.encode(text).ids, "decoded": t.decode(ids, skip_special_tokens=False)})
    cases[name] = rows
(out / "cases.json").write_text(json.dumps(cases, ensure_ascii=True, separators=(",", ":")))

if len(sys.argv) > 2:
    assets = pathlib.Path(sys.argv[2])
    rows = []
    for tokenizer in ("tokenizers/gpt2/tokenizer.json", "tokenizers/llama2/tokenizer.json"):
        t = Tokenizer.from_file(str(assets / tokenizer))
        for text in ("text/wikitext2/valid.txt", "text/wikitext2/test.txt", "text/tinyshakespeare.txt", "text/tinystories/tinystories_v2.clean.jsonl"):
            ids = t.encode((assets / text).read_bytes().decode("utf-8", errors="replace"), add_special_tokens=False).ids
            rows.append({"tokenizer": tokenizer, "text": text, "count": len(ids), "sha256": hashlib.sha256(struct.pack(f"<{len(ids)}I", *ids)).hexdigest()})
    (out / "real.json").write_text(json.dumps(rows, indent=1) + "\n")
