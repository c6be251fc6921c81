"""Writes the golden tensor files of this folder with the formats' own Python libraries (safetensors, gguf, torch).

    python tests/golden/checkpoints/make_golden.py
"""

import pathlib

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent


def safetensors_file():
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(3, 5, generator=generator)
    tensors = {
        "f32": values,
        "bf16": values.to(torch.bfloat16),
        "f16": values.to(torch.float16),
        "f64": values.to(torch.float64),
        "f8_e4m3": values.to(torch.float8_e4m3fn),
        "f8_e5m2": values.to(torch.float8_e5m2),
        "i64": torch.arange(-3, 4),
        "bool": torch.tensor([True, False, True]),
        "c64": torch.complex(values, -values),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
    }
    save_file(tensors, HERE / "python.safetensors", metadata={"format": "pt", "note": "héllo"})


def gguf_file():
    rng = np.random.default_rng(2)
    values = rng.standard_normal((3, 64)).astype(np.float32)
    values[1, :32] = 0  # a block of zeros
    values[2, 32:] *= 1e-6  # scales that are subnormal halves
    writer = gguf.GGUFWriter(HERE / "python.gguf", "llama")
    writer.add_uint8("t.u8", 200)
    writer.add_int8("t.i8", -100)
    writer.add_uint16("t.u16", 60000)
    writer.add_int16("t.i16", -30000)
    writer.add_uint32("t.u32", 4000000000)
    writer.add_int32("t.i32", -2000000000)
    writer.add_uint64("t.u64", 2**63 + 5)
    writer.add_int64("t.i64", -(2**62))
    writer.add_float32("t.f32", 1.5)
    writer.add_float64("t.f64", 1e300)
    writer.add_bool("t.bool", True)
    writer.add_string("t.string", "Ġhello")
    writer.add_array("t.strings", ["a", "", "日本"])
    writer.add_array("t.ints", [1, -2, 3])
    writer.add_array("t.floats", [0.5, -1.0])
    writer.add_tensor("f32", values)
    writer.add_tensor("f16", values.astype(np.float16))
    expected = {"f32": torch.from_numpy(values), "f16": torch.from_numpy(values.astype(np.float16))}
    for kind in (gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0,
                 gguf.GGMLQuantizationType.Q4_1):
        stored = gguf.quants.quantize(values, kind)
        name = kind.name.lower()
        writer.add_tensor(name, stored, raw_dtype=kind)
        restored = torch.from_numpy(gguf.quants.dequantize(stored, kind))
        expected[name] = restored.to(torch.bfloat16) if name == "bf16" else restored
        if name == "q8_0":
            expected["q8_0.blocks"] = torch.from_numpy(stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(expected, HERE / "python_gguf_values.safetensors")


if __name__ == "__main__":
    safetensors_file()
    gguf_file()
