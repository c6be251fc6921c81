// Brings rows of global memory into shared memory, in the background; and where rows are.
#pragma once

#include "attention/kernels/prefill/prefill_tiling.h"
#include "attention/kernels/warp/warp.h"

namespace cinch::prefill {

using warp::Shared;

/// Which problem and which part of it a thread block has. Blocks of all sequences and KV heads take turns.
struct BlockPlace {
  int sequence, kv_head, block;
};
CINCH_DEVICE BlockPlace place_of(const CinchPrefill& work, int index) {
  const int problem = index / work.n_kv_heads;
  return {problem % work.batch, index % work.n_kv_heads, problem / work.batch};
}

/// A row of a KV head's problem: the token, and which of the group's heads.
struct GroupRow {
  int token, member;
};
CINCH_DEVICE GroupRow group_row(const Divider& group, int row) {
  const int token = group.quotient(row);
  return {token, row - token * group.divisor};
}
/// Of an array of the query heads.
CINCH_DEVICE uint16_t* head_row(const CinchPrefillArray& array, int group, BlockPlace place, GroupRow row) {
  const int head = place.kv_head * group + row.member;
  return static_cast<uint16_t*>(array.data) + place.sequence * array.batch_stride + head * array.head_stride +
         row.token * array.token_stride;
}
/// A key, in an array of the KV heads.
CINCH_DEVICE uint16_t* key_row(const CinchPrefillArray& array, BlockPlace place, int key) {
  return static_cast<uint16_t*>(array.data) + place.sequence * array.batch_stride + place.kv_head * array.head_stride +
         key * array.token_stride;
}

/// Starts copies of rows [first, first + count) to shared memory; rows from `end` on become zeros. row_at(row) is where
/// a row lies. Eight neighbours among the threads copy one row.
template <class RowAt>
CINCH_DEVICE void copy_rows(Shared to, int pitch, int columns, int first, int count, int end, int thread, int threads,
                            RowAt row_at) {
  const int piece = thread % 8;
  for (int row = thread / 8; row < count; row += threads / 8) {
    const bool valid = first + row < end;
    const uint16_t* from = row_at(valid ? first + row : end - 1) + 8 * piece;
    Shared target = to + static_cast<Shared>(row * pitch + 16 * piece);
    for (int column = 8 * piece; column < columns; column += 64) {
      warp::copy_async(target, from, valid);
      target += 128;
      from += 64;
    }
  }
}

/// The half of the last unit that no column fills must not hold NaN. Copies never write there.
CINCH_DEVICE void clear_tails(Shared to, int pitch, int columns, int rows, int thread, int threads) {
  if (columns % kTile == 0) return;
  for (int row = thread; row < rows; row += threads)
    shared_store(to + static_cast<Shared>(row * pitch + 2 * columns), warp::Words4{0, 0, 0, 0});
}

}  // namespace cinch::prefill
