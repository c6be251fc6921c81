"""Rows of cases.json: what Hugging Face `tokenizers` does with one text, or with one list of ids."""

def encode_row(t, raw):
    """raw: bytes, perhaps not UTF-8."""
    text = raw.decode("utf-8", errors="replace")
    ids = t.encode(text, add_special_tokens=False).ids
    with_special = t.encode(text).ids
    return {"hex": raw.hex(), "ids": ids, "with_special": with_special, "decoded": t.decode(ids, skip_special_tokens=False), "skipped": t.decode(with_special, skip_special_tokens=True)}


def decode_row(t, chance):
    ids = [chance.randrange(t.get_vocab_size()) for _ in range(chance.randrange(1, 12))]
    return {"ids": ids, "decoded": t.decode(ids, skip_special_tokens=False), "skipped": t.decode(ids, skip_special_tokens=True)}


def random_character(chance):
    blocks = [(0x20, 0x7E), (0x20, 0x7E), (0x80, 0x24F), (0x300, 0x36F), (0x370, 0x5FF), (0x600, 0xFFF), (0x1000, 0x2FFF), (0x3000, 0x9FFF), (0xAC00, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x1FFFF), (0x20000, 0x10FFFF)]
    return chr(chance.randint(*chance.choice(blocks)))


def random_bytes(chance, t):
    """A mixture of what tokenizers trip over: few letters in many orders, words, numbers, white space, tokens, wild code points, broken UTF-8."""
    few = chance.choice(["ab1 -'", "ab1 -'", "a_1²\u0301 ", "ab 1", " \n\t\r", "a▁ ", "ab-12 "])
    tokens = list(t.get_added_tokens_decoder().values())
    words = ["the", "Once", "day", "don't", "I'LL", "über", "漢字", "мир", "😀", "👩‍👧", "한국어", "١٢٣", "2024", "\r\n", "\u00a0", "\u3000", "\u200d", "e\u0301", "\u1100\u1161"]
    parts = []
    for _ in range(chance.randrange(1, 9)):
        kind = chance.randrange(10)
        if kind < 4:
            parts.append("".join(chance.choice(few) for _ in range(chance.randrange(1, 12))).encode())
        elif kind < 6:
            parts.append((chance.choice(["", " ", "  "]) + chance.choice(words)).encode())
        elif kind == 6 and tokens:
            parts.append((chance.choice(["", " ", "\n", "a"]) + chance.choice(tokens).content + chance.choice(["", " ", "  ", "b"])).encode())
        elif kind == 7:
            parts.append("".join(random_character(chance) for _ in range(chance.randrange(1, 6))).encode("utf-8", errors="replace"))
        elif kind == 8:
            parts.append("".join(chance.choice("0123456789.,") for _ in range(chance.randrange(1, 24))).encode())
        elif chance.random() < 0.4:
            parts.append(bytes(chance.randrange(256) for _ in range(chance.randrange(1, 4))))
    return b"".join(parts)
