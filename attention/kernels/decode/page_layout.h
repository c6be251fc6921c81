// Pages of latent caches below 16 bits: 64 tokens in one block of bytes, the same for the kernels that write and read
// them and for the CPU. Columns are those of a cached row without its key scales: latent (R), then rotary keys.
//
//   int8, fp8   codes (64, columns) bytes; scales (64, 2) bf16: of the token's latent, of its rotary keys
//               number = code * scale; scale = largest magnitude / 127 (int8), / 448 (fp8 e4m3), rounded to bf16
//   int4        codes (64, columns / 2) bytes, the even column in the low half; scales (columns) and zeros (columns),
//               16 bits each, of each channel over the 64 tokens of the page
//               number = zero + code * scale; zero = least number, scale = range / 15, in fp16; where one of them is
//               beyond fp16 both are bf16, and the scale's sign bit, else 0, is 1 (cache_precision.h is the same rule)
//   all         key scales (64, K) in the cache's 16-bit type
//
// Numbers are computed in fp32 and rounded once to the cache's 16-bit type. An int4 page is written when its 64th token
// comes; until then its tokens are 16-bit rows of the sequence's open page (decode_abi.h).
#pragma once

#include <stdint.h>

#include "attention/kernels/decode/decode_abi.h"
#include "attention/kernels/warp/device.h"

namespace cinch::decode {

using namespace warp;  // the words that this folder's kernels are written in

/// Offsets in bytes from the page's beginning. Rows of codes and every part begin at multiples of 16.
struct PageLayout {
  int32_t row_bytes;   // of one token's codes
  int32_t scales;      // int8, fp8: (64, 2); int4: (columns)
  int32_t zeros;       // int4: (columns)
  int32_t key_scales;  // (64, K)
  int32_t page_bytes;
};

CINCH_HOST_DEVICE int32_t padded_to_16(int32_t bytes) { return (bytes + 15) / 16 * 16; }

/// `format` is a CinchCacheFormat below 16 bits; `columns` = R + rotary columns; `key_scales`: K, or 0.
CINCH_HOST_DEVICE PageLayout page_layout(int32_t format, int32_t columns, int32_t key_scales) {
  const bool int4 = format == CINCH_CACHE_INT4;
  PageLayout layout{};
  layout.row_bytes = padded_to_16(int4 ? (columns + 1) / 2 : columns);
  layout.scales = layout.row_bytes * CINCH_DECODE_PAGE;
  layout.zeros = layout.scales + padded_to_16(2 * (int4 ? columns : 2 * CINCH_DECODE_PAGE));
  layout.key_scales = layout.zeros + (int4 ? padded_to_16(2 * columns) : 0);
  layout.page_bytes = layout.key_scales + padded_to_16(2 * key_scales * CINCH_DECODE_PAGE);
  return layout;
}

}  // namespace cinch::decode
