"""Writes the seed inputs of the fuzzers into corpus/: one small valid or nearly valid file per feature of each reader.

    python tests/fuzz/make_corpus.py
"""

import json
import pathlib
import struct

HERE = pathlib.Path(__file__).parent / "corpus"


def put(target, name, content):
    folder = HERE / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def safetensors(entries, data, metadata=None):
    header = dict(entries)
    if metadata is not None:
        header["__metadata__"] = metadata
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def seeds_of_safetensors():
    put("safetensors", "one", safetensors({"a": entry("F32", [2], 0, 8)}, bytes(8)))
    put("safetensors", "metadata", safetensors({"a.b": entry("BF16", [2, 3], 0, 12)}, bytes(12), {"format": "pt", "é": "\n"}))
    put("safetensors", "two", safetensors({"x": entry("F64", [1], 0, 8), "y": entry("I8", [4, 1], 8, 12)}, bytes(12)))
    put("safetensors", "small_types", safetensors({"f4": entry("F4", [4], 0, 2), "f6": entry("F6_E2M3", [2, 4], 2, 8)}, bytes(8)))
    put("safetensors", "empty_tensors", safetensors({"s": entry("BOOL", [], 0, 1), "e": entry("U8", [0, 3], 1, 1)}, bytes(1)))
    put("safetensors", "overlap", safetensors({"x": entry("F32", [1], 0, 4), "y": entry("F32", [1], 2, 6)}, bytes(6)))
    put("safetensors", "empty", safetensors({}, b""))


def text(value):
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def gguf(keys, tensors, data, version=3):
    content = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join(keys)
    for name, sizes, kind, offset in tensors:
        content += text(name) + struct.pack("<I", len(sizes)) + b"".join(struct.pack("<Q", size) for size in sizes)
        content += struct.pack("<IQ", kind, offset)
    return content + bytes(-len(content) % 32) + data


def key(name, kind, payload):
    return text(name) + struct.pack("<I", kind) + payload


def seeds_of_gguf():
    scalars = [(0, "<B"), (1, "<b"), (2, "<H"), (3, "<h"), (4, "<I"), (5, "<i"), (6, "<f"), (7, "<B"), (10, "<Q"), (11, "<q"), (12, "<d")]
    keys = [key(f"k{kind}", kind, struct.pack(form, 1)) for kind, form in scalars]
    put("gguf", "scalars", gguf(keys, [], b""))
    strings = struct.pack("<IQ", 8, 2) + text("a") + text("é")
    nested = struct.pack("<IQ", 9, 2) + struct.pack("<IQII", 4, 2, 1, 2) + struct.pack("<IQ", 8, 0)
    put("gguf", "arrays", gguf([key("s", 8, text("v")), key("strings", 9, strings), key("nested", 9, nested)], [], b""))
    for name, kind, size in (("f32", 0, 128), ("f16", 1, 64), ("bf16", 30, 64), ("q8_0", 8, 34), ("q4_0", 2, 18), ("q4_1", 3, 20)):
        put("gguf", name, gguf([], [("w", [32, 1], kind, 0)], bytes(size)))
    put("gguf", "two", gguf([key("general.alignment", 4, struct.pack("<I", 64))],
                            [("a", [3], 0, 0), ("b", [32, 2, 1], 8, 64)], bytes(132), 2))
    put("gguf", "foreign", gguf([], [("w", [256], 12, 0)], bytes(144)))


def seeds_of_hdf5():
    def table(tensors, metadata):
        return b"\x01" + json.dumps({"tensors": tensors, "metadata": metadata}, separators=(",", ":")).encode()

    def row(dtype, shape, offset):
        return {"dtype": dtype, "shape": shape, "offset": offset, "xxh3_128": "0" * 32}

    put("hdf5", "one", table({"a": row("F32", [8, 4], 1024)}, {}))
    put("hdf5", "two", table({"a": row("BF16", [256], 1024), "b": row("F64", [], 2048)}, {"k": "v"}))
    put("hdf5", "overlap", table({"a": row("U8", [16], 1024), "b": row("U8", [16], 1030)}, {}))
    put("hdf5", "signature", b"\x00\x89HDF\r\n\x1a\n" + bytes(100))
    put("hdf5", "trailer", b"\x00" + bytes(64) + struct.pack("<QQQ", 64, 0, 0) + b"0" * 32 + b"CINCHH52")


def seeds_of_json():
    put("json", "config", json.dumps({"model_type": "llama", "hidden_size": 64, "rope_theta": 10000.0, "tie": False, "none": None,
                                      "rope_scaling": {"factor": 8.0, "short": [1.0, 2.5]}, "list": [{"a": 1}, {"b": "x"}],
                                      "words": ["a", "\u00e9\U0001f600"]}).encode())
    put("json", "numbers", b'{"a":18446744073709551615,"b":-9223372036854775808,"c":1e308,"d":[0,-0.0,1E+2]}')
    put("json", "escapes", rb'{"a\u0000b":"\ud83d\ude00\n\"\\\/"}')
    put("json", "deep", b'{"a":' + b"[" * 62 + b"]" * 62 + b"}")
    put("json", "twice", b'{"a":1,"a":2}')


if __name__ == "__main__":
    seeds_of_safetensors()
    seeds_of_gguf()
    seeds_of_hdf5()
    seeds_of_json()
