#include "checkpoints/formats/gguf_blocks.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

namespace cinch {
namespace {

constexpr std::array<GgufTensorType, 6> kTypes = {{{0, "F32", 1, 4},
                                                   {1, "F16", 1, 2},
                                                   {30, "BF16", 1, 2},
                                                   {2, "Q4_0", 32, 18},
                                                   {3, "Q4_1", 32, 20},
                                                   {8, "Q8_0", 32, 34}}};

float half_at(const std::byte* bytes) {
  uint16_t bits = 0;
  std::memcpy(&bits, bytes, 2);
  return half_to_float(bits);
}

}  // namespace

std::optional<GgufTensorType> gguf_tensor_type(uint32_t id) {
  for (const GgufTensorType& type : kTypes) {
    if (type.id == id) return type;
  }
  return std::nullopt;
}

std::optional<GgufTensorType> gguf_tensor_type(std::string_view name) {
  for (const GgufTensorType& type : kTypes) {
    if (type.name == name) return type;
  }
  return std::nullopt;
}

std::string_view gguf_foreign_type_name(uint32_t id) {
  static constexpr std::array<std::string_view, 40> kNames = {
      "F32",       "F16",       "Q4_0",    "Q4_1",  "(removed)", "(removed)", "Q5_0",      "Q5_1",
      "Q8_0",      "Q8_1",      "Q2_K",    "Q3_K",  "Q4_K",      "Q5_K",      "Q6_K",      "Q8_K",
      "IQ2_XXS",   "IQ2_XS",    "IQ3_XXS", "IQ1_S", "IQ4_NL",    "IQ3_S",     "IQ2_S",     "IQ4_XS",
      "I8",        "I16",       "I32",     "I64",   "F64",       "IQ1_M",     "BF16",      "(removed)",
      "(removed)", "(removed)", "TQ1_0",   "TQ2_0", "(removed)", "(removed)", "(removed)", "MXFP4"};
  return id < kNames.size() ? kNames[id] : "an unknown type";
}

float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16;
  const uint32_t exponent = (half >> 10) & 0x1F;
  const uint32_t mantissa = half & 0x3FF;
  if (exponent == 0) {
    const float magnitude = std::ldexp(static_cast<float>(mantissa), -24);
    return sign != 0 ? -magnitude : magnitude;
  }
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000u | (mantissa << 13));
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

uint16_t float_to_half(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return static_cast<uint16_t>(sign | 0x7E00u);
  if (magnitude >= 65520.0f) return static_cast<uint16_t>(sign | 0x7C00u);
  if (magnitude < 0x1p-14f) {  // subnormal half: steps of 2^-24; nearbyint rounds half to even
    return static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(magnitude * 0x1p24f)));
  }
  const uint32_t rounded = (bits & 0x7FFFFFFFu) + 0xFFFu + ((bits >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded >> 13) - (112u << 10)));
}

void dequantize(const GgufTensorType& type, std::span<const std::byte> blocks, std::span<float> out) {
  const std::byte* block = blocks.data();
  for (size_t start = 0; start < out.size(); start += kGgufBlock, block += type.block_bytes) {
    const float scale = half_at(block);
    float* values = out.data() + start;
    if (type.name == "Q8_0") {
      for (int i = 0; i < kGgufBlock; ++i) values[i] = scale * static_cast<float>(static_cast<int8_t>(block[2 + i]));
      continue;
    }
    // Q4_0 centres the integer, Q4_1 adds an offset: in that order, so that zeros keep the sign that ggml gives them.
    const bool offset_form = type.name == "Q4_1";
    const float offset = offset_form ? half_at(block + 2) : 0.0f;
    const int centre = offset_form ? 0 : 8;
    const std::byte* nibbles = block + (offset_form ? 4 : 2);
    const auto value = [&](int nibble) {
      const float scaled = static_cast<float>(nibble - centre) * scale;
      return offset_form ? scaled + offset : scaled;
    };
    for (int i = 0; i < kGgufBlock / 2; ++i) {
      const auto byte = static_cast<unsigned>(nibbles[i]);
      values[i] = value(static_cast<int>(byte & 0xF));
      values[i + kGgufBlock / 2] = value(static_cast<int>(byte >> 4));
    }
  }
}

void quantize_q8_0(std::span<const float> values, std::span<std::byte> out) {
  std::byte* block = out.data();
  for (size_t start = 0; start < values.size(); start += kGgufBlock, block += 2 + kGgufBlock) {
    float largest = 0;
    for (int i = 0; i < kGgufBlock; ++i) largest = std::max(largest, std::fabs(values[start + i]));
    const float scale = largest / 127.0f;
    const float inverse = scale != 0 ? 1.0f / scale : 0.0f;
    const uint16_t half = float_to_half(scale);
    std::memcpy(block, &half, 2);
    for (int i = 0; i < kGgufBlock; ++i) {
      block[2 + i] = static_cast<std::byte>(static_cast<int8_t>(std::round(values[start + i] * inverse)));
    }
  }
}

}  // namespace cinch
