// Whole pages of latent caches below 16 bits (page_layout.h) on the CPU.
#pragma once

#include <stdint.h>

#include "attention/kernels/decode/page_layout.h"

namespace cinch::decode {

struct PageShape {
  int32_t format;  // CinchCacheFormat below 16 bits
  int32_t type;    // CinchDecodeType of key scales
  int32_t latent, rotary, key_scales;

  int32_t columns() const { return latent + rotary; }
  int32_t row_width() const { return columns() + key_scales; }
  PageLayout layout() const { return page_layout(format, columns(), key_scales); }
};

/// The first `tokens` slots of a page from rows (tokens, row_width) of numbers as a 16-bit cache would hold them; other
/// bytes of the page become 0. int4 needs all 64.
void pack_page(const PageShape& shape, const float* rows, int tokens, uint8_t* page);
/// One token's row: numbers in fp32, not yet rounded to the cache's type; key scales as they are.
void unpack_token(const PageShape& shape, const uint8_t* page, int token, float* row);

}  // namespace cinch::decode
