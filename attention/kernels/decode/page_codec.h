// Numbers of a latent cache below 16 bits and back, one at a time: what page_layout.h says in words. The kernels that
// write and read pages and the CPU share these functions, so that all of them hold the same bits.
//
// Numbers to store are those that a 16-bit cache would hold, as fp32; finite. IEEE division, rounding half to even.
#pragma once

#include <math.h>
#include <stdint.h>

#include "attention/kernels/decode/page_layout.h"
#include "attention/kernels/warp/numbers.h"

namespace cinch::decode {

CINCH_HOST_DEVICE float clamped(float x, float low, float high) { return fminf(fmaxf(x, low), high); }

// fp8 is e4m3: sign, 4 bits of exponent with bias 7, 3 bits of mantissa; no infinities, largest 448.

CINCH_HOST_DEVICE float fp8_to_float(uint8_t code) {
  const uint32_t magnitude = code & 0x7fu;
  if (magnitude == 0x7f) return float_of_bits(0x7fc00000u);
  // Its exponent and mantissa where fp32 has them, 2^120 too small; subnormals too.
  return float_of_bits((code & 0x80u) << 24 | magnitude << 20) * 0x1p120f;
}
/// Beyond 448: 448.
CINCH_HOST_DEVICE uint8_t fp8_from_float(float x) {
  const uint32_t sign = float_bits(x) >> 24 & 0x80u;
  const float magnitude = fminf(fabsf(x), 448.0f);
  if (magnitude < 0x1p-6f) {  // subnormal: multiples of 2^-9; the largest rounds to the least normal number
    return static_cast<uint8_t>(sign | static_cast<uint32_t>(rintf(magnitude * 512.0f)));
  }
  const uint32_t bits = float_bits(magnitude), odd = bits >> 20 & 1;
  return static_cast<uint8_t>(sign | ((bits + 0x7ffffu + odd - (120u << 23)) >> 20));
}

// int8 and fp8: one scale, in bf16, for a token's latent and one for its rotary keys.

/// `format` int8 or fp8, here and below; `magnitude`: the largest |x| of those that share the scale. bf16.
CINCH_HOST_DEVICE uint16_t token_scale(int32_t format, float magnitude) {
  return Bf16::from_float(magnitude / (format == CINCH_CACHE_INT8 ? 127.0f : 448.0f));
}
/// `scale` as Bf16::to_float gives it back.
CINCH_HOST_DEVICE uint8_t token_code(int32_t format, float x, float scale) {
  const float steps = scale > 0 ? x / scale : 0;
  if (format == CINCH_CACHE_FP8) return fp8_from_float(steps);
  return static_cast<uint8_t>(static_cast<int32_t>(clamped(rintf(steps), -127.0f, 127.0f)));
}
/// In fp32, where the product is exact; rounded to the cache's type after it.
CINCH_HOST_DEVICE float token_number(int32_t format, uint8_t code, float scale) {
  return (format == CINCH_CACHE_FP8 ? fp8_to_float(code) : static_cast<float>(static_cast<int8_t>(code))) * scale;
}

// int4: scale and zero of a channel over the 64 tokens of a page; the rule of cache_precision.h.

struct ChannelScale {
  uint16_t scale, zero;  // bits as the page holds them; both bf16 where the scale's sign is set, else fp16
};

CINCH_HOST_DEVICE bool channel_is_bf16(ChannelScale channel) { return (channel.scale & 0x8000u) != 0; }
CINCH_HOST_DEVICE float channel_step(ChannelScale channel) {
  return channel_is_bf16(channel) ? Bf16::to_float(channel.scale & 0x7fffu) : Fp16::to_float(channel.scale);
}
CINCH_HOST_DEVICE float channel_zero(ChannelScale channel) {
  return channel_is_bf16(channel) ? Bf16::to_float(channel.zero) : Fp16::to_float(channel.zero);
}
CINCH_HOST_DEVICE ChannelScale channel_scale(float least, float most) {
  least += 0.0f;  // -0 and 0 are one number: which of them a minimum finds must not show
  const float step = fabsf(most - least) / 15.0f;
  if (fabsf(least) <= 65504.0f && step <= 65504.0f) return {Fp16::from_float(step), Fp16::from_float(least)};
  return {static_cast<uint16_t>(Bf16::from_float(step) | 0x8000u), Bf16::from_float(least)};
}
/// 0..15. `step` and `zero` from the channel.
CINCH_HOST_DEVICE uint32_t channel_code(float x, float step, float zero) {
  return step > 0 ? static_cast<uint32_t>(clamped(rintf((x - zero) / step), 0.0f, 15.0f)) : 0;
}
/// The product is exact: fused or not, one rounding to fp32.
CINCH_HOST_DEVICE float channel_number(uint32_t code, float step, float zero) {
  return zero + static_cast<float>(code) * step;
}

}  // namespace cinch::decode
