// Rows of 16-bit numbers on their way through the cache append: loaded, turned by the angle of their position, stored.
// Numbers go in units of eight, two to a word, with one access of 16 bytes where the address allows it.
#pragma once

#include "attention/kernels/decode/append_job.h"
#include "attention/kernels/warp/warp.h"

namespace cinch::decode {

struct Unit {
  uint32_t words[4];
};

/// The first `count` numbers at `from`, then zeros.
CINCH_DEVICE Unit load_unit(const uint16_t* from, int count) {
  if (count >= 8 && is_aligned(from, 16)) {
    const Words4 v = global_load<Words4>(from);
    return {{v.x, v.y, v.z, v.w}};
  }
  Unit unit{};
  CINCH_UNROLL
  for (int i = 0; i < 8; ++i) {
    if (i < count) unit.words[i / 2] |= static_cast<uint32_t>(from[i]) << (16 * (i % 2));
  }
  return unit;
}
CINCH_DEVICE void store_unit(uint16_t* to, const Unit& unit, int count) {
  if (count >= 8 && is_aligned(to, 16)) {
    global_store(to, Words4{unit.words[0], unit.words[1], unit.words[2], unit.words[3]});
    return;
  }
  CINCH_UNROLL
  for (int i = 0; i < 8; ++i) {
    if (i < count) to[i] = static_cast<uint16_t>(unit.words[i / 2] >> (16 * (i % 2)));
  }
}
template <class T>
CINCH_DEVICE float number_of(const Unit& unit, int i) {
  return T::to_float(static_cast<uint16_t>(unit.words[i / 2] >> (16 * (i % 2))));
}

/// Cosines and sines of `count` planes from `plane` on, at a position.
template <int kPlanes>
struct Angles {
  float cos[kPlanes], sin[kPlanes];

  CINCH_DEVICE Angles(const CinchCacheAppend& append, int position, int plane, int count) {
    const int64_t at = static_cast<int64_t>(position) * (append.rotary_dim / 2) + plane;
    load(cos, append.cos + at, count);
    load(sin, append.sin + at, count);
  }

 private:
  CINCH_DEVICE static void load(float (&to)[kPlanes], const float* from, int count) {
    if (count >= kPlanes && is_aligned(from, 16)) {
      CINCH_UNROLL
      for (int i = 0; i < kPlanes; i += 4) {
        const Words4 v = global_load<Words4>(from + i);
        to[i] = float_of_bits(v.x);
        to[i + 1] = float_of_bits(v.y);
        to[i + 2] = float_of_bits(v.z);
        to[i + 3] = float_of_bits(v.w);
      }
      return;
    }
    CINCH_UNROLL
    for (int i = 0; i < kPlanes; ++i) to[i] = i < count ? from[i] : 0;
  }
};

struct Pair {
  float first, second;
};
/// The sum is fused in so many words: neither compiler may then choose.
CINCH_DEVICE Pair turned(float first, float second, float cos, float sin) {
  return {fmaf(-second, sin, first * cos), fmaf(first, sin, second * cos)};
}

/// Numbers [column, column + 8) of a head whose pairs are neighbours; column a multiple of 8.
template <class T>
CINCH_DEVICE void turn_neighbours(const CinchCacheAppend& append, int position, int column, Unit& unit) {
  const int count = (append.rotary_dim - column) / 2;
  if (count <= 0) return;
  const Angles<4> angles(append, position, column / 2, count);
  CINCH_UNROLL
  for (int i = 0; i < 4; ++i) {
    const Pair pair = turned(number_of<T>(unit, 2 * i), number_of<T>(unit, 2 * i + 1), angles.cos[i], angles.sin[i]);
    if (i < count) unit.words[i] = pack(T(), pair.first, pair.second);
  }
}
/// Planes [plane, plane + count) of a head whose pairs are halves.
template <class T>
CINCH_DEVICE void turn_halves(const CinchCacheAppend& append, int position, int plane, int count, Unit& first,
                              Unit& second) {
  const Angles<8> angles(append, position, plane, count);
  CINCH_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int j = 2 * i, k = j + 1;
    const Pair low = turned(number_of<T>(first, j), number_of<T>(second, j), angles.cos[j], angles.sin[j]);
    const Pair high = turned(number_of<T>(first, k), number_of<T>(second, k), angles.cos[k], angles.sin[k]);
    first.words[i] = pack(T(), low.first, high.first);
    second.words[i] = pack(T(), low.second, high.second);
  }
}

/// A new token.
struct NewToken {
  int sequence, index;
};
/// Negative: the token is not there.
CINCH_DEVICE int position_of(const CinchCacheAppend& append, NewToken token) {
  return append.lengths[token.sequence] - append.tokens + token.index;
}
CINCH_DEVICE const uint16_t* numbers_from(const AppendRows& rows, NewToken token, int head) {
  return rows.from + token.sequence * rows.batch_stride + token.index * rows.token_stride + head * rows.head_stride;
}
/// Page of a position, counted from the cache's begin.
CINCH_DEVICE int64_t page_of(const CinchCacheAppend& append, int sequence, int position) {
  return append.block_table[sequence * append.block_table_stride + position / CINCH_DECODE_PAGE];
}
CINCH_DEVICE uint16_t* place_of(const CinchCacheAppend& append, const AppendRows& rows, NewToken token, int head,
                                int position) {
  int64_t page = token.sequence, row = token.index;
  if (rows.in_cache != 0) row = position;
  if (rows.in_cache != 0 && append.block_table != nullptr) {
    page = page_of(append, token.sequence, position);
    row = position % CINCH_DECODE_PAGE;
  }
  return rows.to + page * rows.to_page_stride + row * rows.to_token_stride + head * rows.to_head_stride;
}

/// One unit of one token's rows, `unit` < job.units.
template <class T>
CINCH_DEVICE void append_unit(const AppendJob& job, NewToken token, int unit) {
  const CinchCacheAppend& append = job.append;
  const AppendRows* rows = job.rows;
  for (; unit >= rows->units * rows->heads; ++rows) unit -= rows->units * rows->heads;
  const int head = unit / rows->units;
  unit -= head * rows->units;
  const uint16_t* const from = numbers_from(*rows, token, head);
  const int planes = rows->rotary_dim / 2;
  const bool halves = unit < rows->turning_units;
  const int column = halves                    ? 8 * unit
                     : rows->turning_units > 0 ? 2 * planes + 8 * (unit - rows->turning_units)
                                               : 8 * unit;
  const int left = (halves ? planes : rows->width) - column, count = left < 8 ? left : 8;
  // The numbers are on their way before anyone waits for the position.
  const int position = position_of(append, token);
  Unit first = load_unit(from + column, count), second{};
  if (halves) second = load_unit(from + planes + column, count);
  if (position < 0) return;
  uint16_t* const to = place_of(append, *rows, token, head, position);
  if (halves) {
    turn_halves<T>(append, position, column, count, first, second);
    store_unit(to + planes + column, second, count);
  } else if (append.pairs == CINCH_PAIRS_NEIGHBOURS && rows->rotary_dim > 0) {
    turn_neighbours<T>(append, position, column, first);
  }
  store_unit(to + column, first, count);
}

/// What a thread block below job.row_blocks does.
template <class T>
CINCH_DEVICE void append_rows(const AppendJob& job, int block, int thread) {
  const int token = block / job.row_splits, unit = (block - token * job.row_splits) * kAppendThreads + thread;
  if (unit >= job.units) return;
  const int sequence = token / job.append.tokens;
  append_unit<T>(job, {sequence, token - sequence * job.append.tokens}, unit);
}

}  // namespace cinch::decode
