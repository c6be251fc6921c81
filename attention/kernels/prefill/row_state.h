// What the backward needs of every row besides its columns: prepared once, then copied like the columns.
#pragma once

#include "attention/kernels/prefill/tile_loader.h"
#include "attention/kernels/prefill/visible_range.h"
#include "attention/kernels/warp/warp.h"

namespace cinch::prefill {

/// 16 bytes. Zeros: of no row.
struct RowState {
  float lse;    // base 2
  float delta;  // dot(d_out, out): the sum over keys of weights times their gradients
  Range keys;   // that the row sees
};

constexpr int kRowStateThreads = 128;
/// Rows of a thread block.
constexpr int kRowStateRows = kRowStateThreads / 8;

CINCH_HOST_DEVICE int64_t row_state_blocks(const CinchPrefill& work) {
  const int64_t rows = int64_t{work.batch} * work.n_kv_heads * rows_of(work);
  return (rows + kRowStateRows - 1) / kRowStateRows;
}
/// Of the row'th row of a KV head: states lie problem after problem.
CINCH_HOST_DEVICE RowState* row_state(const CinchPrefill& work, BlockPlace place, int row) {
  const int64_t problem = int64_t{place.sequence} * work.n_kv_heads + place.kv_head;
  return static_cast<RowState*>(work.row_states) + problem * rows_of(work) + row;
}

template <class T>
CINCH_DEVICE float dot_pair(uint32_t a, uint32_t b) {
  return T::to_float(static_cast<uint16_t>(a)) * T::to_float(static_cast<uint16_t>(b)) +
         T::to_float(static_cast<uint16_t>(a >> 16)) * T::to_float(static_cast<uint16_t>(b >> 16));
}

/// Eight threads to a row.
template <class T>
CINCH_DEVICE void write_row_states(const CinchPrefill& work, int64_t block, int thread) {
  const int64_t rows = rows_of(work), index = block * kRowStateRows + thread / 8;
  const int64_t all = rows * work.batch * work.n_kv_heads;
  const int64_t own = index < all ? index : all - 1;  // idle threads take part in the shuffles
  const int problem = static_cast<int>(own / rows);
  const BlockPlace place{problem / work.n_kv_heads, problem % work.n_kv_heads, 0};
  const int row = static_cast<int>(own % rows), group = group_of(work);
  const int token = row / group, member = row % group;
  const uint16_t* const out = head_row(work.out, group, place, {token, member});
  const uint16_t* const d_out = head_row(work.d_out, group, place, {token, member});
  float delta = 0;
  for (int column = thread % 8 * 8; column < work.v_head_dim; column += 64) {
    const auto a = *reinterpret_cast<const warp::Words4*>(out + column);
    const auto b = *reinterpret_cast<const warp::Words4*>(d_out + column);
    delta += dot_pair<T>(a.x, b.x) + dot_pair<T>(a.y, b.y) + dot_pair<T>(a.z, b.z) + dot_pair<T>(a.w, b.w);
  }
  delta += warp::shuffle_xor(delta, 1);
  delta += warp::shuffle_xor(delta, 2);
  delta += warp::shuffle_xor(delta, 4);
  if (thread % 8 != 0 || index >= all) return;
  const int64_t head = int64_t{place.sequence} * work.n_heads + place.kv_head * group + member;
  const float lse = work.lse[head * work.queries + token] * warp::kLog2e;
  *row_state(work, place, row) = {lse, delta, keys_of(work, place.sequence, token)};
}

}  // namespace cinch::prefill
