// ggml's block formats: 32 values share a scale (and for Q4_1 an offset). Layouts as in ggml-common.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace cinch {

constexpr int64_t kGgufBlock = 32;

struct GgufTensorType {
  uint32_t id;
  std::string_view name;
  int64_t block_values;
  int64_t block_bytes;
};

/// The types that cinch reads; nothing for others.
std::optional<GgufTensorType> gguf_tensor_type(uint32_t id);
std::optional<GgufTensorType> gguf_tensor_type(std::string_view name);
/// ggml's name of any type id, for messages ("Q4_K"); "an unknown type" for others.
std::string_view gguf_foreign_type_name(uint32_t id);

/// `blocks` to out.size() floats.
void dequantize(const GgufTensorType& type, std::span<const std::byte> blocks, std::span<float> out);
/// ggml's quantize_row_q8_0_ref: scale = max|x| / 127, values rounded half away from zero. `values` must be finite.
void quantize_q8_0(std::span<const float> values, std::span<std::byte> out);

float half_to_float(uint16_t half);
uint16_t float_to_half(float value);  // round to nearest even

}  // namespace cinch
