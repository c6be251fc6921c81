// How one cache append is cut into work for thread blocks. Chosen on the host from the append's shape.
//
// Thread blocks 0 .. row_blocks - 1 move rows of 16-bit numbers, a thread up to eight (as halves twice eight): queries
// to q_out, and in a 16-bit cache what becomes its rows. The others make pages below 16 bits. int8 and fp8: a warp
// takes the latent, the rotary keys or the key scales of one token. int4: a thread block takes 64 columns of one page
// that becomes full, with all of its tokens; that of a sequence's first page also moves the tokens that stay 16-bit
// rows of the open page, as it alone knows when the rows before them have been read.
#pragma once

#include <stdint.h>

#include "attention/kernels/decode/append_abi.h"
#include "attention/kernels/decode/page_layout.h"

namespace cinch::decode {

constexpr int kAppendThreads = 128;
constexpr int kTileColumns = 64;  // of an int4 page
constexpr int kLaneUnits = 4;     // of eight numbers, that a lane can hold of a part of a token's codes

/// Places in AppendJob::rows. Grouped: queries, keys, values.
enum { kQueryRows = 0, kKeyRows = 1, kValueRows = 2, kLatentRows = 1, kRotaryRows = 2, kScaleRows = 3 };

/// One array of tokens and where it goes.
struct AppendRows {
  const uint16_t* from;
  int64_t batch_stride, head_stride, token_stride;
  uint16_t* to;
  int64_t to_page_stride;  // as in CinchDecodeCache; of q_out: between sequences
  int64_t to_head_stride, to_token_stride;
  int32_t in_cache;  // 1: placed by position, 0: by the token's index
  int32_t heads, width, rotary_dim;
  int32_t turning_units, units;  // of a head: what one thread takes, those of halves first; 0 where not moved as rows
};

struct AppendJob {
  CinchCacheAppend append;
  AppendRows rows[4];
  int32_t units;       // of one token, all rows together
  int32_t row_splits;  // thread blocks that share them
  int64_t row_blocks;  // B * T * row_splits
  int64_t blocks;
  int32_t shared_bytes;

  // Below 16 bits.
  PageLayout layout;
  int32_t columns;       // R + rotary columns
  int32_t parts;         // int8, fp8: pieces of work per token
  int32_t pages, tiles;  // int4: pages that T tokens can fill; column tiles, then key scales
};

/// False with the rule and the value in `error` where the append is not one that the kernel does.
bool make_append_job(const CinchCacheAppend& append, AppendJob& job, char* error, uint64_t error_size);

}  // namespace cinch::decode
