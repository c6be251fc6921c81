"""Small tokenizers built with Hugging Face `tokenizers` from the components of real ones, and odder ones that bring out single rules."""
import collections
import json
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TRAINING = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind; it's used to foxes that'll jump 12 times in 2024.",
    "Once upon a time there was a little girl named Lily. She loved to play in the garden, and she'd sing all day long.",
    "def add(a, b):\n    return a + b\n\nprint(add(1234567890, 0.5))\n\tdone\r\n",
    "Wir hören die Züge über die Brücke fahren. Déjà vu, naïve café, coöperation.",
    "漢字とかなの文。한국어 문장입니다. Привет, мир! مرحبا بالعالم ١٢٣",
] * 4

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


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
    letters = collections.Counter("".join(TRAINING).replace(" ", "▁"))
    alphabet = sorted(letters, key=lambda c: (-letters[c], c))[:60]  # the trainer's own choice among equals is by chance
    t.train_from_iterator(TRAINING, trainers.BpeTrainer(vocab_size=560, special_tokens=special, initial_alphabet=alphabet, limit_alphabet=60, show_progress=False))
    data = json.loads(t.to_str())  # byte tokens are ordinary vocabulary in real files
    data["added_tokens"] = [a for a in data["added_tokens"] if not a["content"].startswith("<0x")]
    t = Tokenizer.from_str(json.dumps(data))
    t.add_special_tokens([separator])
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return t


def dense(pre=None, normalizer=None, alphabet="ab1 -'", unknown=None, decoder=None, **options):
    """All strings of up to three letters are tokens: every other cut of a text gives other ids."""
    pairs = [a + b for a in alphabet for b in alphabet]
    pieces = list(alphabet) + pairs + [p + c for p in pairs for c in alphabet]
    extra = [unknown] if unknown else []
    vocab = {piece: i for i, piece in enumerate(extra + options.pop("vocab", []) + pieces)}
    merges = [(a, b) for a in alphabet for b in alphabet] + [(p, c) for p in pairs for c in alphabet]
    t = Tokenizer(models.BPE(vocab, merges, unk_token=unknown, **options))
    if pre:
        t.pre_tokenizer = pre
    if normalizer:
        t.normalizer = normalizer
    t.decoder = decoder or decoders.Fuse()
    return t


def with_tokens(t, *tokens):
    t.add_tokens(list(tokens))
    return t


def with_post(t, post):
    t.post_processor = post
    return t


def json_of(name, t):
    """tokenizer.json text; for names that end in "string_merges" in the older form, one string for each merge."""
    if not name.endswith("string_merges"):
        return t.to_str()
    data = json.loads(t.to_str())
    data["model"]["merges"] = [" ".join(merge) for merge in data["model"]["merges"]]
    return json.dumps(data, ensure_ascii=False)


def added(content, **flags):
    return AddedToken(content, **{"normalized": False, **flags})


FALLBACK = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
STRIPPED = decoders.Sequence(FALLBACK + [decoders.Strip(" ", 1, 0)])
PLAIN_SEPARATOR = AddedToken("<|sep|>", special=True, normalized=False)
LEGACY = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
MARKED = "ab1▁-'"  # the alphabet of dense() after Metaspace


# Patterns of other published tokenizers: GPT-4 (cl100k), GPT-4o (o200k), DeepSeek-V3, and a way to cut digits from the right.
PUBLISHED = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"\d{1,3}(?=(?:\d{3})*\b)",
    r"[\u4e00-\u9fa5\u3040-\u309f]+",
    r"\w+|[^\w\s]+",
    r"\B.",
    r"^\s|.$",
    r"\p{Han}|\p{Hiragana}+",
]


def split(pattern, behaviour, invert=False):
    return pre_tokenizers.Split(Regex(pattern), behaviour, invert)


def random_flags(chance):
    return {flag: chance.random() < 0.4 for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")}


def random_bpe(chance):
    """Merges without any order or sense, so that a queue meets many stale entries."""
    pieces, merges = list("ab1 -'"), []
    for _ in range(60):
        pair = (chance.choice(pieces), chance.choice(pieces))
        if len("".join(pair)) <= 8:
            merges.append(pair)
            if "".join(pair) not in pieces:
                pieces.append("".join(pair))
    chance.shuffle(merges)
    vocab = ["<unk>", "<0x61>", "<0x0A>", "<0xC3>", "<0xA9>"] + pieces
    return models.BPE(
        {p: i for i, p in enumerate(vocab)}, merges, unk_token=chance.choice([None, "<unk>"]), fuse_unk=chance.random() < 0.5, byte_fallback=chance.random() < 0.5, ignore_merges=chance.random() < 0.3,
    )


def random_tokenizer(chance):
    """Any components behind one another, but for what cinch does not follow: the alignments of `tokenizers` after a normalizer that inserts or
    removes text at the very start (they decide what is "first", and can double an inserted character); added tokens that the normalizer empties
    (refused) or makes equal (`tokenizers` picks one by its hash)."""
    behaviours = ["isolated", "removed", "contiguous", "merged_with_previous", "merged_with_next"]

    shifting = chance.random() < 0.5

    def scheme():
        return chance.choice(["always", "never"] if shifting else ["always", "first", "never"])

    def pre():
        return chance.choice([
            lambda: split(chance.choice(PUBLISHED + [" ", "1", r"\s+", "a*", "(?=b)"]), chance.choice(behaviours), chance.random() < 0.3),
            lambda: pre_tokenizers.Split(chance.choice([" ", "ab", "-"]), chance.choice(behaviours), chance.random() < 0.3),
            lambda: pre_tokenizers.Digits(chance.random() < 0.5),
            lambda: pre_tokenizers.Metaspace(prepend_scheme=scheme(), split=chance.random() < 0.5),
            lambda: pre_tokenizers.ByteLevel(add_prefix_space=chance.random() < 0.5, use_regex=chance.random() < 0.5),
        ])()

    def normal():
        return chance.choice([
            lambda: normalizers.NFC(), lambda: normalizers.NFKC(), lambda: normalizers.NFD(), lambda: normalizers.Replace(" ", "▁"), lambda: normalizers.Prepend("▁") if shifting else normalizers.NFC(),
            lambda: normalizers.Replace(Regex(chance.choice([r"\s+", r"\w", "a|b1"])), chance.choice(["", "b", "1 "])) if shifting else normalizers.NFD(),
            lambda: normalizers.Strip(shifting and chance.random() < 0.5, chance.random() < 0.5),
        ])()

    def decode():
        return chance.choice([
            lambda: decoders.Replace("▁", " "), lambda: decoders.ByteFallback(), lambda: decoders.Fuse(), lambda: decoders.Strip(chance.choice(" a"), chance.randrange(3), 0), lambda: decoders.Metaspace(prepend_scheme=scheme()), lambda: decoders.ByteLevel(),
        ])()

    kind = chance.randrange(3)
    if kind == 0:
        t = dense(alphabet=chance.choice(["ab1 -'", MARKED, "a_1²\u0301 "]))
    elif kind == 1:
        t = Tokenizer(random_bpe(chance))
    else:
        t = byte_level(BYTE_LEVEL, ignore_merges=chance.random() < 0.5)
    steps = [pre() for _ in range(chance.randrange(3))] + ([BYTE_LEVEL] if kind == 2 else [])
    if steps:
        t.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    forms = [normal() for _ in range(chance.randrange(3))]
    if forms:
        t.normalizer = normalizers.Sequence(forms)
    parts = [decode() for _ in range(chance.randrange(4))]
    if parts:
        t.decoder = decoders.Sequence(parts)
    if chance.random() < 0.7:
        contents = chance.sample(["ab", "abb", "-", "--", "'", "  ", " ", "\n", "bb", "a1", "▁a", "é", "<x>", "1", "b1"], chance.randrange(1, 7))
        tokens = [AddedToken(c, **random_flags(chance)) for c in contents]
        spelled = {"": None}
        for token in tokens:
            spelled.setdefault(t.normalizer.normalize_str(token.content) if token.normalized and t.normalizer else token.content, token)
        t.add_tokens([token for token in spelled.values() if token])
    return t


def named():
    """After real tokenizers."""
    return {
        "gpt2": byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
        "llama3": byte_level(pre_tokenizers.Sequence([split(LLAMA3, "isolated"), BYTE_LEVEL]), bos=True, ignore_merges=True),
        "qwen2": byte_level(pre_tokenizers.Sequence([split(QWEN2, "isolated"), BYTE_LEVEL]), normalizer=normalizers.NFC()),
        "smollm": byte_level(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])),
        "llama2": spm(LEGACY, None, STRIPPED, AddedToken("<|sep|>", special=True, normalized=True)),
        "mistral": spm(None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False), STRIPPED, PLAIN_SEPARATOR),
        "gemma": spm(normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"), decoders.Sequence(FALLBACK), PLAIN_SEPARATOR),
        "phi3": spm(LEGACY, None, STRIPPED, AddedToken("<|sep|>", special=True, normalized=False, rstrip=True)),
    }


def odd():
    """After single rules."""
    made = {}
    for behaviour in ("isolated", "removed", "contiguous", "merged_with_previous", "merged_with_next"):
        made[f"split_{behaviour}"] = dense(split(r"[ \-]", behaviour))
        made[f"split_{behaviour}_inverted"] = dense(split(r"[ \-]", behaviour, True))
    made["split_empty_matches"] = dense(split(r"(?=1)|\b", "isolated"))
    made["split_word"] = dense(pre_tokenizers.Sequence([split(r"\w+|[^\w\s]+", "isolated"), pre_tokenizers.Digits(False)]), alphabet="a_1²\u0301 ")
    made["metaspace_always"] = dense(pre_tokenizers.Metaspace(prepend_scheme="always"), alphabet=MARKED, decoder=decoders.Metaspace(prepend_scheme="always"))
    made["metaspace_first"] = dense(pre_tokenizers.Sequence([split("1", "removed"), pre_tokenizers.Metaspace(prepend_scheme="first")]), alphabet=MARKED, decoder=decoders.Metaspace(prepend_scheme="first"))
    made["metaspace_never"] = dense(pre_tokenizers.Metaspace(prepend_scheme="never", split=False), alphabet=MARKED, decoder=decoders.Metaspace(prepend_scheme="never"))
    made["unknown_fused"] = dense(alphabet="ab ", unknown="<unk>", fuse_unk=True)
    made["unknown_apart"] = dense(alphabet="ab ", unknown="<unk>", fuse_unk=False)
    made["unknown_bytes"] = dense(alphabet="ab ", unknown="<unk>", byte_fallback=True, vocab=["<0x31>", "<0x2D>"], fuse_unk=True, decoder=decoders.Sequence(FALLBACK))
    made["strip"] = dense(normalizer=normalizers.Sequence([normalizers.Strip(True, True), normalizers.Replace(Regex(r"\s+"), " ")]))
    made["added_flags"] = with_tokens(
        dense(normalizer=normalizers.Replace("b", "1")),
        added("ab"), added("abb", single_word=True), added("-", lstrip=True), added("--", rstrip=True), added("'", lstrip=True, rstrip=True, special=True), added("  ", special=True),
        added("bb", normalized=True), added("a1", normalized=True, single_word=True), added("b-", normalized=True, rstrip=True),
    )
    made["roberta"] = with_post(byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)), processors.RobertaProcessing(("</s>", 1), ("<s>", 0), trim_offsets=True, add_prefix_space=True))
    made["bert_processing"] = with_post(dense(vocab=["[CLS]", "[SEP]"]), processors.BertProcessing(("[SEP]", 1), ("[CLS]", 0)))
    made["template_both_ends"] = with_post(dense(vocab=["<s>", "</s>"]), processors.Sequence([processors.ByteLevel(trim_offsets=True), processors.TemplateProcessing(single="<s> $A </s> </s>", special_tokens=[("<s>", 0), ("</s>", 1)])]))
    for i, pattern in enumerate(PUBLISHED[:4]):
        made[f"published_{i}"] = byte_level(pre_tokenizers.Sequence([split(pattern, "isolated"), BYTE_LEVEL]))
    made["string_merges"] = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True))
    made["random_merges"] = Tokenizer(random_bpe(random.Random(3)))
    made["no_decoder"] = dense()
    made["no_decoder"].decoder = None
    return made
