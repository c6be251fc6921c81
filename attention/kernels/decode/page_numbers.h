// Eight neighbouring numbers of a packed row at once: the bits of page_codec.h in few instructions.
#pragma once

#include "attention/kernels/decode/page_codec.h"
#include "attention/kernels/warp/warp.h"

namespace cinch::decode {

/// Codes 0..2^k - 1 that stand at bit kBit of a word, as floats: written into the mantissa of a power of two, whose
/// last bit then weighs what makes the code count ones. kBit + k <= 23.
template <int kBit>
CINCH_HOST_DEVICE float float_of_field(uint32_t field) {
  constexpr uint32_t kBase = static_cast<uint32_t>(127 + 23 - kBit) << 23;
  return float_of_bits(field | kBase) - float_of_bits(kBase);
}

template <class T>
CINCH_DEVICE Words4 packed_numbers(T type, const float (&x)[8]) {
  return {pack(type, x[0], x[1]), pack(type, x[2], x[3]), pack(type, x[4], x[5]), pack(type, x[6], x[7])};
}

/// int8 and fp8: 8 bytes of codes that share a scale.
template <class T>
CINCH_DEVICE Words4 int8_numbers(T type, Words2 codes, float scale) {
  float x[8];
  CINCH_UNROLL
  for (int i = 0; i < 2; ++i) {
    const uint32_t word = (i == 0 ? codes.x : codes.y) ^ 0x80808080u;  // code + 128
    const uint32_t upper = word >> 16;
    x[4 * i] = (float_of_field<0>(word & 0xffu) - 128.0f) * scale;
    x[4 * i + 1] = (float_of_field<8>(word & 0xff00u) - 128.0f) * scale;
    x[4 * i + 2] = (float_of_field<0>(upper & 0xffu) - 128.0f) * scale;
    x[4 * i + 3] = (float_of_field<8>(upper & 0xff00u) - 128.0f) * scale;
  }
  return packed_numbers(type, x);
}
template <class T>
CINCH_DEVICE Words4 fp8_numbers(T type, Words2 codes, float scale) {
  // With exponent and mantissa where fp16 has them, a number is 2^8 too small.
  const float large = scale * 256.0f;
  float x[8];
  CINCH_UNROLL
  for (int i = 0; i < 2; ++i) {
    const uint32_t word = i == 0 ? codes.x : codes.y;
    const uint32_t even = (word << 8 & 0x80008000u) | (word << 7 & 0x3f803f80u);  // bytes 0 and 2
    const uint32_t odd = (word & 0x80008000u) | (word >> 1 & 0x3f803f80u);
    x[4 * i] = Fp16::to_float(static_cast<uint16_t>(even & 0xffffu)) * large;
    x[4 * i + 1] = Fp16::to_float(static_cast<uint16_t>(odd & 0xffffu)) * large;
    x[4 * i + 2] = Fp16::to_float(static_cast<uint16_t>(even >> 16)) * large;
    x[4 * i + 3] = Fp16::to_float(static_cast<uint16_t>(odd >> 16)) * large;
  }
  return packed_numbers(type, x);
}

/// int4: steps and zeros of 8 channels.
struct Channels8 {
  float step[8], zero[8];

  CINCH_DEVICE void load(Words4 scales, Words4 zeros) {
    const uint32_t s[4] = {scales.x, scales.y, scales.z, scales.w}, z[4] = {zeros.x, zeros.y, zeros.z, zeros.w};
    const bool some_bf16 = ((s[0] | s[1] | s[2] | s[3]) & 0x80008000u) != 0;  // seldom
    CINCH_UNROLL
    for (int i = 0; i < 8; ++i) {
      const auto scale_bits = static_cast<uint16_t>(s[i / 2] >> (16 * (i % 2)));
      const auto zero_bits = static_cast<uint16_t>(z[i / 2] >> (16 * (i % 2)));
      step[i] = Fp16::to_float(scale_bits);
      zero[i] = Fp16::to_float(zero_bits);
      if (!some_bf16) continue;
      step[i] = channel_step({scale_bits, zero_bits});
      zero[i] = channel_zero({scale_bits, zero_bits});
    }
  }
  /// 8 codes, the first column in the lowest bits.
  template <class T>
  CINCH_DEVICE Words4 numbers(T type, uint32_t codes) const {
    const uint32_t upper = codes >> 12;  // codes 5, 6, 7 at bits 8, 12, 16
    const float code[8] = {float_of_field<0>(codes & 0xfu),      float_of_field<4>(codes & 0xf0u),
                           float_of_field<8>(codes & 0xf00u),    float_of_field<12>(codes & 0xf000u),
                           float_of_field<16>(codes & 0xf0000u), float_of_field<8>(upper & 0xf00u),
                           float_of_field<12>(upper & 0xf000u),  float_of_field<16>(upper & 0xf0000u)};
    float x[8];
    CINCH_UNROLL
    for (int i = 0; i < 8; ++i) x[i] = zero[i] + code[i] * step[i];
    return packed_numbers(type, x);
  }
};

}  // namespace cinch::decode
