// The element types of tensor files: every type of the safetensors format, with its name and size. No torch here.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace cinch {

enum class Dtype : uint8_t {
  kBool,
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kU64,
  kI64,
  kF4,
  kF6E2M3,
  kF6E3M2,
  kF8E4M3,
  kF8E5M2,
  kF8E8M0,
  kF8E4M3Fnuz,
  kF8E5M2Fnuz,
  kF16,
  kBF16,
  kF32,
  kF64,
  kC64
};

/// Bits of one element; 4 and 6 for the sub-byte types, whose tensors must fill whole bytes.
int64_t dtype_bits(Dtype dtype);

/// The safetensors spelling: "F32", "BF16", "F8_E4M3", ...
std::string_view dtype_name(Dtype dtype);

/// The type with that safetensors spelling, or nothing.
std::optional<Dtype> dtype_from_name(std::string_view name);

/// True for F16, BF16, F32, F64: the types that model weights may have.
bool is_weight_dtype(Dtype dtype);

}  // namespace cinch
