// The cache append into pages of fewer bits (page_layout.h).
#pragma once

#include "attention/kernels/decode/append_rows.h"
#include "attention/kernels/decode/page_codec.h"

namespace cinch::decode {

/// Where columns [column, column + 8) come from, of the row that a new token would have in a 16-bit cache.
CINCH_DEVICE const uint16_t* row_source(const AppendJob& job, NewToken token, int column) {
  const int inside = column - job.append.kv_lora_rank;
  if (inside < 0) return numbers_from(job.rows[kLatentRows], token, 0) + column;
  const int head = inside / job.append.qk_rope_head_dim;
  return numbers_from(job.rows[kRotaryRows], token, head) + (inside - head * job.append.qk_rope_head_dim);
}
/// And what becomes of them.
template <class T>
CINCH_DEVICE void turn_row(const AppendJob& job, int position, int column, Unit& unit) {
  const int inside = column - job.append.kv_lora_rank;
  if (inside >= 0) turn_neighbours<T>(job.append, position, inside % job.append.qk_rope_head_dim, unit);
}
CINCH_DEVICE char* page_at(const AppendJob& job, int sequence, int position) {
  char* const pages = static_cast<char*>(const_cast<void*>(job.append.keys.data));
  return pages + page_of(job.append, sequence, position) * job.append.keys.page_stride;
}
/// Of a token of a page.
CINCH_DEVICE uint16_t* key_scales_at(const AppendJob& job, char* page, int row) {
  return reinterpret_cast<uint16_t*>(page + job.layout.key_scales) + int64_t{row} * job.rows[kScaleRows].width;
}

/// int8, fp8: a piece of work by one warp.
template <class T>
CINCH_DEVICE void append_codes(const AppendJob& job, NewToken token, int part, int lane) {
  const CinchCacheAppend& append = job.append;
  const int position = position_of(append, token), row = position % CINCH_DECODE_PAGE;
  if (position < 0) return;
  char* const page = page_at(job, token.sequence, position);
  if (part == 2) {
    const uint16_t* const from = numbers_from(job.rows[kScaleRows], token, 0);
    for (int i = lane; i < job.rows[kScaleRows].width; i += 32) key_scales_at(job, page, row)[i] = from[i];
    return;
  }
  const int begin = (part == 0 ? 0 : append.kv_lora_rank) + 8 * lane;
  const int end = part == 0 ? append.kv_lora_rank : job.columns;
  Unit units[kLaneUnits];  // all on their way at once
  CINCH_UNROLL
  for (int j = 0; j < kLaneUnits; ++j) {
    const int column = begin + 8 * 32 * j;
    units[j] = column < end ? load_unit(row_source(job, token, column), 8) : Unit{};
  }
  float magnitude = 0;
  CINCH_UNROLL
  for (int j = 0; j < kLaneUnits; ++j) {
    const int column = begin + 8 * 32 * j;
    if (column >= end) continue;
    turn_row<T>(job, position, column, units[j]);
    CINCH_UNROLL
    for (int i = 0; i < 8; ++i) magnitude = fmaxf(magnitude, fabsf(number_of<T>(units[j], i)));
  }
  CINCH_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) magnitude = fmaxf(magnitude, shuffle_xor(magnitude, mask));
  const uint16_t bits = token_scale(append.cache_format, magnitude);
  if (lane == 0) reinterpret_cast<uint16_t*>(page + job.layout.scales)[2 * row + part] = bits;
  const float scale = Bf16::to_float(bits);
  CINCH_UNROLL
  for (int j = 0; j < kLaneUnits; ++j) {
    const int column = begin + 8 * 32 * j;
    if (column >= end) continue;
    uint32_t codes[2] = {0, 0};
    CINCH_UNROLL
    for (int i = 0; i < 8; ++i) {
      const uint32_t code = token_code(append.cache_format, number_of<T>(units[j], i), scale);
      codes[i / 4] |= code << (8 * (i % 4));
    }
    global_store(page + int64_t{row} * job.layout.row_bytes + column, Words2{codes[0], codes[1]});
  }
}

/// int4: the tokens of one page among the new ones, in one tile of columns (or the key scales), by one thread block.
template <class T>
class Int4Tile {
 public:
  CINCH_DEVICE Int4Tile(const AppendJob& job, int sequence, int page, int tile, int thread)
      : job_(job), sequence_(sequence), thread_(thread), column_(tile * kTileColumns), shared_(shared_begin()) {
    const int left = job.columns - column_;
    units_ = (left < kTileColumns ? left : kTileColumns) / 8;
    end_ = job.append.lengths[sequence];
    begin_ = end_ > job.append.tokens ? end_ - job.append.tokens : 0;
    first_page_ = page == 0;
    page_begin_ = (begin_ / CINCH_DECODE_PAGE + page) * CINCH_DECODE_PAGE;
  }

  CINCH_DEVICE void run() {
    const bool full = page_begin_ + CINCH_DECODE_PAGE <= end_;
    if (full) {
      if (units_ > 0) {
        gather();
        sync_block();
        find_scales();
        pack_codes();
      } else {
        move_scales(page_begin_, page_begin_ + CINCH_DECODE_PAGE, /*to_page=*/true);
        sync_block();
      }
    }
    // The rows that the sequence's last, unfinished page begins with: by the thread block that has read what stood in
    // their place before.
    if (!first_page_) return;
    const int last = end_ / CINCH_DECODE_PAGE * CINCH_DECODE_PAGE, first = last > begin_ ? last : begin_;
    if (units_ > 0) {
      fill_open(first);
    } else {
      move_scales(first, end_, /*to_page=*/false);
    }
  }

 private:
  static constexpr int kPitch = kTileColumns * 2;
  static constexpr int kRanges = CINCH_DECODE_PAGE * kPitch;                       // (warps, columns) pairs of floats
  static constexpr int kSteps = kRanges + kAppendThreads / 32 * kTileColumns * 8;  // (columns) pairs of floats

  CINCH_DEVICE NewToken token_at(int position) const { return {sequence_, position - end_ + job_.append.tokens}; }
  CINCH_DEVICE uint16_t* open_row(int position) const {
    const CinchDecodeCache& open = job_.append.open;
    return static_cast<uint16_t*>(const_cast<void*>(open.data)) + sequence_ * open.page_stride +
           position % CINCH_DECODE_PAGE * open.token_stride;
  }

  // Of the tile's places, (64 rows, 8 units), each thread takes this many.
  static constexpr int kThreadUnits = CINCH_DECODE_PAGE * 8 / kAppendThreads;
  struct Place {
    int row, unit;
  };
  CINCH_DEVICE Place place(int index) const {
    const int i = thread_ + index * kAppendThreads;
    return {i / 8, i % 8};
  }
  CINCH_DEVICE Shared at(Place p) const { return shared_ + static_cast<Shared>(p.row * kPitch + 16 * p.unit); }

  /// The page's rows to shared memory.
  CINCH_DEVICE void gather() const {
    Unit units[kThreadUnits];  // all on their way at once
    CINCH_UNROLL
    for (int j = 0; j < kThreadUnits; ++j) {
      const Place p = place(j);
      const int position = page_begin_ + p.row, column = column_ + 8 * p.unit;
      if (p.unit >= units_) continue;
      units[j] =
          load_unit(position < begin_ ? open_row(position) + column : row_source(job_, token_at(position), column), 8);
    }
    CINCH_UNROLL
    for (int j = 0; j < kThreadUnits; ++j) {
      const Place p = place(j);
      const int position = page_begin_ + p.row;
      if (p.unit >= units_) continue;
      if (position >= begin_) turn_row<T>(job_, position, column_ + 8 * p.unit, units[j]);
      shared_store(at(p), Words4{units[j].words[0], units[j].words[1], units[j].words[2], units[j].words[3]});
    }
  }

  /// Scale and zero of every channel: to the page, and as numbers to shared memory.
  CINCH_DEVICE void find_scales() const {
    const int warp = thread_ / 32, pair = thread_ % 32;
    if (pair < 4 * units_) {
      constexpr int kRows = CINCH_DECODE_PAGE / (kAppendThreads / 32);
      float least[2], most[2];
      CINCH_UNROLL
      for (int row = 0; row < kRows; ++row) {
        const uint32_t word = shared_word(shared_ + static_cast<Shared>((warp * kRows + row) * kPitch + 4 * pair));
        CINCH_UNROLL
        for (int half = 0; half < 2; ++half) {
          const float x = T::to_float(static_cast<uint16_t>(word >> (16 * half)));
          least[half] = row == 0 ? x : fminf(least[half], x);
          most[half] = row == 0 ? x : fmaxf(most[half], x);
        }
      }
      CINCH_UNROLL
      for (int half = 0; half < 2; ++half) {
        shared_store(range_at(warp, 2 * pair + half), least[half]);
        shared_store(range_at(warp, 2 * pair + half) + 4, most[half]);
      }
    }
    sync_block();
    if (thread_ < 8 * units_) {
      float least = shared_float(range_at(0, thread_)), most = shared_float(range_at(0, thread_) + 4);
      for (int other = 1; other < kAppendThreads / 32; ++other) {
        least = fminf(least, shared_float(range_at(other, thread_)));
        most = fmaxf(most, shared_float(range_at(other, thread_) + 4));
      }
      const ChannelScale channel = channel_scale(least, most);
      char* const page = page_at(job_, sequence_, page_begin_);
      reinterpret_cast<uint16_t*>(page + job_.layout.scales)[column_ + thread_] = channel.scale;
      reinterpret_cast<uint16_t*>(page + job_.layout.zeros)[column_ + thread_] = channel.zero;
      shared_store(step_at(thread_), channel_step(channel));
      shared_store(step_at(thread_) + 4, channel_zero(channel));
    }
    sync_block();
  }
  CINCH_DEVICE Shared range_at(int warp, int column) const {
    return shared_ + static_cast<Shared>(kRanges + (warp * kTileColumns + column) * 8);
  }
  CINCH_DEVICE Shared step_at(int column) const { return shared_ + static_cast<Shared>(kSteps + column * 8); }

  CINCH_DEVICE void pack_codes() const {
    char* const page = page_at(job_, sequence_, page_begin_);
    CINCH_UNROLL
    for (int j = 0; j < kThreadUnits; ++j) {
      const Place p = place(j);
      if (p.unit >= units_) continue;
      const Words4 v = shared_words4(at(p));
      const Unit numbers{{v.x, v.y, v.z, v.w}};
      uint32_t codes = 0;
      CINCH_UNROLL
      for (int i = 0; i < 8; ++i) {
        const Shared step = step_at(8 * p.unit + i);
        codes |= channel_code(number_of<T>(numbers, i), shared_float(step), shared_float(step + 4)) << (4 * i);
      }
      global_store(page + int64_t{p.row} * job_.layout.row_bytes + (column_ + 8 * p.unit) / 2, codes);
    }
  }

  /// New rows from position `first` on, to the open page.
  CINCH_DEVICE void fill_open(int first) const {
    for (int i = thread_; i < (end_ - first) * units_; i += kAppendThreads) {
      const int row = i / units_, unit = i - row * units_, position = first + row, column = column_ + 8 * unit;
      Unit numbers = load_unit(row_source(job_, token_at(position), column), 8);
      turn_row<T>(job_, position, column, numbers);
      store_unit(open_row(position) + column, numbers, 8);
    }
  }

  /// Key scales of tokens [first, end), to a page or to the open page.
  CINCH_DEVICE void move_scales(int first, int end, bool to_page) const {
    const int width = job_.rows[kScaleRows].width;
    for (int i = thread_; i < (end - first) * width; i += kAppendThreads) {
      const int row = i / width, scale = i - row * width, position = first + row;
      const uint16_t bits = position < begin_ ? open_row(position)[job_.columns + scale]
                                              : numbers_from(job_.rows[kScaleRows], token_at(position), 0)[scale];
      uint16_t* const to =
          to_page ? key_scales_at(job_, page_at(job_, sequence_, position), row) : open_row(position) + job_.columns;
      to[scale] = bits;
    }
  }

  const AppendJob& job_;
  const int sequence_, thread_;
  const int column_;
  int units_;                     // of 8 columns; none: the key scales
  int begin_, end_, page_begin_;  // positions: of the new tokens, of this page
  bool first_page_;
  const Shared shared_;
};

}  // namespace cinch::decode
