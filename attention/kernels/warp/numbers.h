// Numbers on the host and the device: what float needs, and bfloat16 and IEEE half as bit patterns, converted with
// rounding to nearest even.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "attention/kernels/warp/device.h"

namespace cinch::warp {

CINCH_HOST_DEVICE uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
CINCH_HOST_DEVICE float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

constexpr float kLog2e = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;

CINCH_HOST_DEVICE float max_of(float a, float b) { return fmaxf(a, b); }
CINCH_HOST_DEVICE float minus_infinity() { return float_of_bits(0xff800000u); }

struct Bf16 {
  CINCH_HOST_DEVICE static float to_float(uint16_t bits) { return float_of_bits(uint32_t{bits} << 16); }
  CINCH_HOST_DEVICE static uint16_t from_float(float value) {
    const uint32_t bits = float_bits(value);
    if (value != value) return 0x7fff;
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  }
};

struct Fp16 {
  CINCH_HOST_DEVICE static float to_float(uint16_t bits) {
#if defined(__CUDA_ARCH__)
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
#else
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, exponent = (bits >> 10) & 31;
    const uint32_t mantissa = bits & 0x3ff;
    if (exponent == 31) return float_of_bits(sign | 0x7f800000 | (mantissa << 13));
    if (exponent != 0) return float_of_bits(sign | ((exponent + 112) << 23) | (mantissa << 13));
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // subnormal
    return sign != 0 ? -magnitude : magnitude;
#endif
  }
  CINCH_HOST_DEVICE static uint16_t from_float(float value) {
    const uint32_t bits = float_bits(value), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return 0x7fff;
    if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // rounds to infinity
    if (magnitude < 0x38800000) {  // subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits
      return static_cast<uint16_t>(sign | (float_bits(float_of_bits(magnitude) + 0.5f) - 0x3f000000));
    }
    return static_cast<uint16_t>(sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13));
  }
};

}  // namespace cinch::warp
