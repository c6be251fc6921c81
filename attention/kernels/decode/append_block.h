// What one thread block of the cache append does (append_job.h tells who does what).
#pragma once

#include "attention/kernels/decode/append_pages.h"

namespace cinch::decode {

/// Kernels by what they compile: rows alone, and with pages of codes with a scale per token or per channel.
enum { kAppendRows = 0, kAppendTokenCodes = 1, kAppendChannelCodes = 2 };

/// T is Bf16 or Fp16.
template <class T, int kPages>
CINCH_DEVICE void append_block(const AppendJob& job, int block, int thread) {
  if (block < job.row_blocks) return append_rows<T>(job, block, thread);
  if constexpr (kPages == kAppendTokenCodes) {
    const int piece = (block - static_cast<int>(job.row_blocks)) * (kAppendThreads / 32) + thread / 32;
    const int token = piece / job.parts, sequence = token / job.append.tokens;
    if (sequence >= job.append.batch) return;
    append_codes<T>(job, {sequence, token - sequence * job.append.tokens}, piece - token * job.parts, thread % 32);
  }
  if constexpr (kPages == kAppendChannelCodes) {
    const int piece = block - static_cast<int>(job.row_blocks), place = piece / job.tiles;
    const int sequence = place / job.pages;
    Int4Tile<T>(job, sequence, place - sequence * job.pages, piece - place * job.tiles, thread).run();
  }
}

/// Calls visitor.visit<T, pages>() of the kernel that an append takes.
template <class Visitor>
auto visit_append(const CinchCacheAppend& append, Visitor&& visitor) {
  const bool bf16 = append.type == CINCH_DECODE_BF16;
  if (append.cache_format == CINCH_CACHE_16BIT)
    return bf16 ? visitor.template visit<Bf16, kAppendRows>() : visitor.template visit<Fp16, kAppendRows>();
  if (append.cache_format == CINCH_CACHE_INT4)
    return bf16 ? visitor.template visit<Bf16, kAppendChannelCodes>()
                : visitor.template visit<Fp16, kAppendChannelCodes>();
  return bf16 ? visitor.template visit<Bf16, kAppendTokenCodes>() : visitor.template visit<Fp16, kAppendTokenCodes>();
}

}  // namespace cinch::decode
