"""Makes tokenizer.json and tokenizer_config.json from the SentencePiece vocabulary inside stories260K's GGUF file (MIT, karpathy/llama2.c).

    python make_tokenizer.py stories260Ktok512.gguf

Needs gguf and tokenizers. The merges are every split of a piece into two pieces, best score first, as Hugging Face's own conversion of
SentencePiece BPE models orders them. Ends by comparing the ids with SentencePiece's algorithm run on the scores.
"""

import json
import sys
from pathlib import Path

from gguf import GGUFReader
from tokenizers import Tokenizer

folder = Path(__file__).parent
reader = GGUFReader(sys.argv[1])
field = reader.fields["tokenizer.ggml.tokens"]
pieces = [bytes(field.parts[i]).decode("utf-8") for i in field.data]
field = reader.fields["tokenizer.ggml.scores"]
scores = [float(field.parts[i][0]) for i in field.data]
pieces[:3] = ["<unk>", "<s>", "</s>"]
ids = {piece: i for i, piece in enumerate(pieces)}


def merges():
    found = []
    for piece, score in zip(pieces[259:], scores[259:]):
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in ids and piece[i:] in ids]
        found += [(score, split) for split in sorted(splits, key=lambda s: (ids[s[0]], ids[s[1]]))]
    return [list(split) for _, split in sorted(found, key=lambda f: -f[0])]


special = [{"id": i, "content": pieces[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True} for i in range(3)]
tokenizer = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
    "normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
    "pre_tokenizer": None,
    "post_processor": {"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                 {"SpecialToken": {"id": "<s>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
    "decoder": {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
        "fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "vocab": ids, "merges": merges()},
}
config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True,
    "add_eos_token": False, "clean_up_tokenization_spaces": False, "legacy": True, "model_max_length": 512}
(folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
(folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def reference(text):
    """SentencePiece BPE: merges the best-scoring neighbouring pair until none is a piece; unknown characters become bytes."""
    parts = list("▁" + text.replace(" ", "▁"))
    while True:
        pairs = [(scores[ids[a + b]], -i) for i, (a, b) in enumerate(zip(parts, parts[1:])) if ids.get(a + b, 0) > 258]
        if not pairs:
            break
        i = -max(pairs)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [i for p in parts for i in ([ids[p]] if p in ids else [3 + byte for byte in p.encode()])]


ours = Tokenizer.from_file(str(folder / "tokenizer.json"))
lines = (folder / "../stories/test.txt").read_text(encoding="utf-8").splitlines()[:300] + ["naïve café 漢字 🙂", "  two  spaces ", "1234567890"]
for line in lines:
    assert ours.encode(line, add_special_tokens=False).ids == (reference(line) if line else []), line
print(len(lines), "lines agree")
