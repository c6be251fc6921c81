// Pages of latent caches below 16 bits by the words of page_layout.h and obvious loops, apart from the code that the
// kernels use.
#pragma once

#include <string.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "attention/kernels/decode/decode_abi.h"
#include "attention/kernels/warp/numbers.h"

namespace cinch::decode::reference {

using namespace warp;  // numbers

inline int to_16(int bytes) { return (bytes + 15) & ~15; }

/// Where a page's parts begin, in bytes.
struct PageParts {
  int row, scales, zeros, key_scales, end;

  PageParts(int format, int columns, int key_scale_count) {
    const bool int4 = format == CINCH_CACHE_INT4;
    row = to_16(int4 ? columns / 2 : columns);
    scales = 64 * row;
    zeros = scales + (int4 ? to_16(2 * columns) : 256);
    key_scales = int4 ? zeros + to_16(2 * columns) : zeros;
    end = key_scales + to_16(128 * key_scale_count);
  }
};

inline int page_bytes(int format, int columns, int key_scales) { return PageParts(format, columns, key_scales).end; }

inline void store_16(uint8_t* to, uint16_t bits) { memcpy(to, &bits, 2); }

/// Magnitude of an e4m3 code by its definition.
inline double fp8_magnitude(int code) {
  const int exponent = code >> 3, mantissa = code & 7;
  return exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
}
/// The nearest code, of two the even one; at most 448.
inline uint8_t fp8_code(float x) {
  const double magnitude = std::abs(static_cast<double>(x));
  int code = 0;
  while (code < 0x7e && fp8_magnitude(code + 1) <= magnitude) ++code;
  if (code < 0x7e) {
    const double below = magnitude - fp8_magnitude(code), above = fp8_magnitude(code + 1) - magnitude;
    if (above < below || (above == below && code % 2 == 1)) ++code;
  }
  return static_cast<uint8_t>(code | (std::signbit(x) ? 0x80 : 0));
}

/// int8, fp8: one token's codes, and the scales of its latent and its rotary keys.
inline void store_token(int format, const std::vector<float>& row, int latent, int columns, uint8_t* page, int token) {
  const PageParts parts(format, columns, 0);
  for (int part = 0; part < 2; ++part) {
    const int begin = part == 0 ? 0 : latent, end = part == 0 ? latent : columns;
    float largest = 0;
    for (int i = begin; i < end; ++i) largest = std::max(largest, std::abs(row[static_cast<size_t>(i)]));
    const uint16_t bits = Bf16::from_float(largest / (format == CINCH_CACHE_INT8 ? 127.0f : 448.0f));
    store_16(page + (parts.scales + 4 * token + 2 * part), bits);
    const float scale = Bf16::to_float(bits);
    for (int i = begin; i < end; ++i) {
      const float steps = scale == 0 ? 0 : row[static_cast<size_t>(i)] / scale;
      uint8_t code = 0;
      if (format == CINCH_CACHE_INT8) {
        code = static_cast<uint8_t>(std::clamp<long>(std::lrint(steps), -127, 127));
      } else {
        code = fp8_code(steps);
      }
      page[token * parts.row + i] = code;
    }
  }
}

/// int4: a page's 64 rows.
inline void store_channels(const std::vector<std::vector<float>>& rows, int columns, uint8_t* page) {
  const PageParts parts(CINCH_CACHE_INT4, columns, 0);
  for (int i = 0; i < columns; ++i) {
    const auto column = static_cast<size_t>(i);
    float least = rows[0][column], most = least;
    for (const auto& row : rows) {
      least = std::min(least, row[column]);
      most = std::max(most, row[column]);
    }
    if (least == 0) least = 0;  // not -0
    const float step = most == least ? 0 : (most - least) / 15;
    const bool half = std::abs(least) <= 65504 && step <= 65504;
    const uint16_t scale = half ? Fp16::from_float(step) : Bf16::from_float(step);
    const uint16_t zero = half ? Fp16::from_float(least) : Bf16::from_float(least);
    store_16(page + (parts.scales + 2 * i), static_cast<uint16_t>(half ? scale : scale | 0x8000));
    store_16(page + (parts.zeros + 2 * i), zero);
    const float a = half ? Fp16::to_float(scale) : Bf16::to_float(scale);
    const float b = half ? Fp16::to_float(zero) : Bf16::to_float(zero);
    for (int token = 0; token < 64; ++token) {
      const float x = rows[static_cast<size_t>(token)][column];
      const long code = a == 0 ? 0 : std::clamp<long>(std::lrint((x - b) / a), 0, 15);
      uint8_t& two = page[token * parts.row + i / 2];
      two = static_cast<uint8_t>(i % 2 == 0 ? (two & 0xf0) | code : (two & 0x0f) | code << 4);
    }
  }
}

/// The last numbers of a token's row.
inline void store_key_scales(int format, int columns, int count, const std::vector<uint16_t>& row, uint8_t* page,
                             int token) {
  const PageParts parts(format, columns, count);
  for (int i = 0; i < count; ++i)
    store_16(page + (parts.key_scales + 2 * (token * count + i)),
             row.at(static_cast<size_t>(columns) + static_cast<size_t>(i)));
}

}  // namespace cinch::decode::reference
