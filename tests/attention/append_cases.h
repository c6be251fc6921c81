// Cache appends with random numbers, for tests on the CPU and on a device, and what they must write, by obvious loops.
// Whatever must not be written, or read, is NaN. No LibTorch, no GoogleTest.
#pragma once

#include <string.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "attention/kernels/decode/append_abi.h"
#include "attention/kernels/warp/numbers.h"
#include "tests/attention/page_reference.h"

namespace cinch::decode {

struct AppendCase {
  int kind = CINCH_DECODE_LATENT, type = CINCH_DECODE_BF16, format = CINCH_CACHE_16BIT;
  std::vector<int32_t> lengths = {100};
  int tokens = 1;
  int n_heads = 9, n_kv_heads = 3;
  int head_dim = 0, rotary_dim = 0;  // grouped
  int rank = 0, rope = 0;            // latent
  bool neighbours = true, rope_per_kv_head = false, key_scales = false;
  bool paged = true;
  bool tokens_first = false;  // grouped caches: heads of a token lie side by side
  bool ragged = false;        // arrays of new tokens begin at odd addresses, with odd strides
  bool in_place = false;      // q_out is q
  bool without_q = false;
  float spread = 1;
};

inline std::string name_of(const AppendCase& c) {
  std::string name = c.kind == CINCH_DECODE_LATENT ? "latent" : "grouped";
  const auto add = [&name](const char* key, int value) {
    name += key;
    name += std::to_string(value);
  };
  if (c.kind == CINCH_DECODE_LATENT) {
    add(" R", c.rank);
    add(" Dr", c.rope);
  } else {
    add(" D", c.head_dim);
    add(" rotary ", c.rotary_dim);
  }
  add(" H", c.n_heads);
  add(" K", c.n_kv_heads);
  const char* const formats[] = {" 16bit", " int8", " fp8", " int4"};
  name += formats[c.format];
  name += c.type == CINCH_DECODE_BF16 ? " bf16" : " fp16";
  name += c.neighbours ? " neighbours" : " halves";
  name += c.paged ? " paged" : " dense";
  if (c.rope_per_kv_head) name += " rope/head";
  if (c.key_scales) name += " scales";
  if (c.tokens_first) name += " tokens-first";
  if (c.ragged) name += " ragged";
  if (c.in_place) name += " in place";
  if (c.without_q) name += " without q";
  add(" T", c.tokens);
  for (size_t i = 0; i < c.lengths.size(); ++i) add(i == 0 ? " lengths " : ",", c.lengths[i]);
  return name;
}

/// What an append writes.
struct AppendResult {
  std::vector<uint16_t> q_out, values, open;
  std::vector<uint16_t> keys;  // 16 bits, or the bytes of pages
};

/// The arrays of a case; `append` points into them.
struct AppendArrays {
  std::vector<uint16_t> q, k, v, scales;
  std::vector<float> cos, sin;
  std::vector<int32_t> table, lengths;
  AppendResult to;
  CinchCacheAppend append{};
  int64_t shift = 0;  // elements before the first number of q, k, v and scales
  bool in_place = false;

  void point() {
    const auto data = [this](const std::vector<uint16_t>& of) { return of.empty() ? nullptr : of.data() + shift; };
    append.cos = cos.data();
    append.sin = sin.data();
    append.q.data = in_place ? to.q_out.data() + shift : data(q);
    append.k.data = data(k);
    append.v.data = data(v);
    append.scales.data = data(scales);
    append.q_out = to.q_out.empty() ? nullptr : to.q_out.data() + shift;
    append.keys.data = to.keys.data();
    append.values.data = to.values.empty() ? nullptr : to.values.data();
    append.open.data = to.open.empty() ? nullptr : to.open.data();
    append.block_table = table.empty() ? nullptr : table.data();
    append.lengths = lengths.data();
  }
};

/// The loops. Works on host memory, on what `append` points to.
class AppendReference {
 public:
  explicit AppendReference(const CinchCacheAppend& append) : a_(append) {}

  void run() const {
    for (int b = 0; b < a_.batch; ++b) {
      for (int t = std::max(0, a_.tokens - a_.lengths[b]); t < a_.tokens; ++t) token(b, t);
      if (a_.cache_format == CINCH_CACHE_INT4) complete_pages(b);
    }
  }

  /// A new head's numbers after rotation: fp32, as append_abi.h says, and rounded once.
  std::vector<uint16_t> turned(const CinchTokenRows& rows, int width, int rotary, int b, int h, int t) const {
    const auto* const from =
        static_cast<const uint16_t*>(rows.data) + b * rows.batch_stride + h * rows.head_stride + t * rows.token_stride;
    std::vector<uint16_t> result(from, from + width);
    const int planes = rotary / 2, position = a_.lengths[b] - a_.tokens + t;
    for (int j = 0; j < planes; ++j) {
      const int first = a_.pairs == CINCH_PAIRS_HALVES ? j : 2 * j;
      const int second = a_.pairs == CINCH_PAIRS_HALVES ? j + planes : 2 * j + 1;
      const float cos = a_.cos[position * planes + j], sin = a_.sin[position * planes + j];
      const float x = number(from[first]), y = number(from[second]);
      const float x_cos = x * cos, y_cos = y * cos;
      result[static_cast<size_t>(first)] = bits(std::fma(-y, sin, x_cos));
      result[static_cast<size_t>(second)] = bits(std::fma(x, sin, y_cos));
    }
    return result;
  }

 private:
  bool latent() const { return a_.kind == CINCH_DECODE_LATENT; }
  int rotary_heads() const { return a_.rope_per_kv_head != 0 ? a_.n_kv_heads : 1; }
  int columns() const { return a_.kv_lora_rank + rotary_heads() * a_.qk_rope_head_dim; }
  float number(uint16_t x) const { return a_.type == CINCH_DECODE_BF16 ? Bf16::to_float(x) : Fp16::to_float(x); }
  uint16_t bits(float x) const { return a_.type == CINCH_DECODE_BF16 ? Bf16::from_float(x) : Fp16::from_float(x); }

  static void copy(const std::vector<uint16_t>& row, uint16_t* to) { std::copy(row.begin(), row.end(), to); }

  void token(int b, int t) const {
    const int width = latent() ? a_.qk_rope_head_dim : a_.head_dim, position = a_.lengths[b] - a_.tokens + t;
    for (int h = 0; a_.q.data != nullptr && h < a_.n_heads; ++h) {
      copy(turned(a_.q, width, a_.rotary_dim, b, h, t), static_cast<uint16_t*>(a_.q_out) + b * a_.q_out_batch_stride +
                                                            h * a_.q_out_head_stride + t * a_.q_out_token_stride);
    }
    if (latent()) return latent_row(b, t, position);
    for (int h = 0; h < a_.n_kv_heads; ++h) {
      copy(turned(a_.k, width, a_.rotary_dim, b, h, t), row_at(a_.keys, b, position) + h * a_.keys.head_stride);
      copy(turned(a_.v, width, 0, b, h, t), row_at(a_.values, b, position) + h * a_.values.head_stride);
    }
  }

  std::vector<uint16_t> new_row(int b, int t) const {
    std::vector<uint16_t> row = turned(a_.v, a_.kv_lora_rank, 0, b, 0, t);
    for (int h = 0; h < rotary_heads(); ++h) {
      const auto key = turned(a_.k, a_.qk_rope_head_dim, a_.rotary_dim, b, h, t);
      row.insert(row.end(), key.begin(), key.end());
    }
    if (a_.key_scales == 0) return row;
    const auto scales = turned(a_.scales, a_.n_kv_heads, 0, b, 0, t);
    row.insert(row.end(), scales.begin(), scales.end());
    return row;
  }

  void latent_row(int b, int t, int position) const {
    const std::vector<uint16_t> row = new_row(b, t);
    if (a_.cache_format == CINCH_CACHE_16BIT) return copy(row, row_at(a_.keys, b, position));
    if (a_.cache_format == CINCH_CACHE_INT4) return;
    const std::vector<float> x = numbers(row);
    const int scales = static_cast<int>(row.size()) - columns();
    reference::store_token(a_.cache_format, x, a_.kv_lora_rank, columns(), page_at(b, position), position % 64);
    reference::store_key_scales(a_.cache_format, columns(), scales, row, page_at(b, position), position % 64);
  }

  /// int4: all tokens of the pages that the new ones touch, old ones from the open page.
  void complete_pages(int b) const {
    const int end = a_.lengths[b], begin = std::max(0, end - a_.tokens), width = columns() + scale_columns();
    std::vector<std::vector<uint16_t>> rows;
    rows.reserve(64);
    for (int position = begin / 64 * 64; position < end; ++position) {
      const uint16_t* const held = open_row(b, position);
      rows.push_back(position < begin ? std::vector<uint16_t>(held, held + width)
                                      : new_row(b, position - end + a_.tokens));
      if (position % 64 != 63) continue;
      std::vector<std::vector<float>> page(rows.size());
      std::transform(rows.begin(), rows.end(), page.begin(), [this](const auto& row) { return numbers(row); });
      reference::store_channels(page, columns(), page_at(b, position));
      for (int row = 0; row < 64; ++row) {
        reference::store_key_scales(CINCH_CACHE_INT4, columns(), scale_columns(), rows[static_cast<size_t>(row)],
                                    page_at(b, position), row);
      }
      rows.clear();
    }
    for (size_t i = 0; i < rows.size(); ++i) {
      const int position = end / 64 * 64 + static_cast<int>(i);
      if (position >= begin) copy(rows[i], open_row(b, position));
    }
  }

  int scale_columns() const { return a_.key_scales != 0 ? a_.n_kv_heads : 0; }
  std::vector<float> numbers(const std::vector<uint16_t>& row) const {
    std::vector<float> x(row.size());
    std::transform(row.begin(), row.end(), x.begin(), [this](uint16_t value) { return number(value); });
    return x;
  }
  uint16_t* open_row(int b, int position) const {
    return static_cast<uint16_t*>(const_cast<void*>(a_.open.data)) + b * a_.open.page_stride +
           position % 64 * a_.open.token_stride;
  }
  int64_t page_index(int b, int position) const { return a_.block_table[b * a_.block_table_stride + position / 64]; }
  uint16_t* row_at(const CinchDecodeCache& cache, int b, int position) const {
    auto* const data = static_cast<uint16_t*>(const_cast<void*>(cache.data));
    if (a_.block_table == nullptr) return data + b * cache.page_stride + position * cache.token_stride;
    return data + page_index(b, position) * cache.page_stride + position % 64 * cache.token_stride;
  }
  uint8_t* page_at(int b, int position) const {
    return static_cast<uint8_t*>(const_cast<void*>(a_.keys.data)) + page_index(b, position) * a_.keys.page_stride;
  }

  const CinchCacheAppend& a_;
};

class AppendBuilder {
 public:
  AppendBuilder(const AppendCase& c, uint32_t seed) : case_(c), random_(seed) {}

  AppendArrays build() {
    shape();
    AppendArrays& a = arrays_;
    a.shift = case_.ragged ? 3 : 0;
    a.in_place = case_.in_place;
    const bool latent = case_.kind == CINCH_DECODE_LATENT;
    const int width = latent ? case_.rope : case_.head_dim;
    const int kv_heads = latent ? rotary_heads() : case_.n_kv_heads;
    if (!case_.without_q) {
      a.q = tokens(a.append.q, case_.n_heads, width);
      queries_out(width);
    }
    if (width > 0) a.k = tokens(a.append.k, kv_heads, width);
    a.v = tokens(a.append.v, latent ? 1 : kv_heads, latent ? case_.rank : width);
    if (case_.key_scales) a.scales = tokens(a.append.scales, 1, case_.n_kv_heads);
    tables();
    caches();
    a.point();
    return std::move(arrays_);
  }

 private:
  static constexpr uint16_t kNan = 0x7fff;  // in both types

  int rotary_heads() const { return case_.rope_per_kv_head ? case_.n_kv_heads : 1; }
  int64_t batch() const { return static_cast<int64_t>(case_.lengths.size()); }
  int longest() const { return std::max(1, *std::max_element(case_.lengths.begin(), case_.lengths.end())); }

  void shape() {
    CinchCacheAppend& s = arrays_.append;
    s.kind = case_.kind;
    s.type = case_.type;
    s.cache_format = case_.format;
    s.pairs = case_.neighbours ? CINCH_PAIRS_NEIGHBOURS : CINCH_PAIRS_HALVES;
    s.batch = static_cast<int32_t>(batch());
    s.tokens = case_.tokens;
    s.n_heads = case_.n_heads;
    s.n_kv_heads = case_.n_kv_heads;
    s.head_dim = case_.head_dim;
    s.kv_lora_rank = case_.rank;
    s.qk_rope_head_dim = case_.rope;
    s.rope_per_kv_head = case_.rope_per_kv_head ? 1 : 0;
    s.rotary_dim = case_.kind == CINCH_DECODE_LATENT ? case_.rope : case_.rotary_dim;
    s.key_scales = case_.key_scales ? 1 : 0;
    arrays_.lengths = case_.lengths;
  }

  uint16_t noise() {
    const float x = std::normal_distribution<float>(0, case_.spread)(random_);
    return case_.type == CINCH_DECODE_BF16 ? Bf16::from_float(x) : Fp16::from_float(x);
  }

  /// (B, T, heads, width) as a projection leaves it, more numbers around each token; tokens that are not there are NaN.
  std::vector<uint16_t> tokens(CinchTokenRows& rows, int heads, int width) {
    const int64_t gap = case_.ragged ? 5 : 8;
    rows.head_stride = case_.ragged ? width + 1 : width;
    rows.token_stride = heads * rows.head_stride + gap;
    rows.batch_stride = case_.tokens * rows.token_stride + gap;
    std::vector<uint16_t> data(static_cast<size_t>(batch() * rows.batch_stride + 8), kNan);
    for (int64_t b = 0; b < batch(); ++b) {
      for (int t = std::max(0, case_.tokens - case_.lengths[static_cast<size_t>(b)]); t < case_.tokens; ++t) {
        for (int h = 0; h < heads; ++h) {
          const int64_t at = arrays_.shift + b * rows.batch_stride + t * rows.token_stride + h * rows.head_stride;
          for (int i = 0; i < width; ++i) data[static_cast<size_t>(at + i)] = noise();
        }
      }
    }
    return data;
  }

  /// In place; or columns of the absorbed query buffer (B, H, T, R+Dr), of plain queries (B, H, T, D).
  void queries_out(int width) {
    CinchCacheAppend& s = arrays_.append;
    if (case_.in_place) {
      s.q_out_batch_stride = s.q.batch_stride;
      s.q_out_head_stride = s.q.head_stride;
      s.q_out_token_stride = s.q.token_stride;
      arrays_.to.q_out = arrays_.q;
      return;
    }
    s.q_out_token_stride = case_.rank + width;
    s.q_out_head_stride = case_.tokens * s.q_out_token_stride;
    s.q_out_batch_stride = case_.n_heads * s.q_out_head_stride;
    arrays_.to.q_out.assign(static_cast<size_t>(batch() * s.q_out_batch_stride + 8), kNan);
  }

  /// With a factor, as YaRN has one; NaN where no token is.
  void tables() {
    const int planes = arrays_.append.rotary_dim / 2;
    std::vector<bool> used(static_cast<size_t>(longest()), false);
    for (const int32_t length : case_.lengths)
      for (int p = std::max(0, length - case_.tokens); p < length; ++p) used[static_cast<size_t>(p)] = true;
    for (int position = 0; position < longest(); ++position) {
      for (int j = 0; j < planes; ++j) {
        const double angle = position * std::pow(10000.0, -static_cast<double>(j) / planes);
        const bool there = used[static_cast<size_t>(position)];
        arrays_.cos.push_back(there ? static_cast<float>(1.07 * std::cos(angle)) : NAN);
        arrays_.sin.push_back(there ? static_cast<float>(1.07 * std::sin(angle)) : NAN);
      }
    }
  }

  void caches() {
    CinchCacheAppend& s = arrays_.append;
    const bool latent = case_.kind == CINCH_DECODE_LATENT;
    const int64_t columns = latent ? case_.rank + rotary_heads() * case_.rope : case_.head_dim;
    const int64_t width = columns + (case_.key_scales ? case_.n_kv_heads : 0), heads = latent ? 1 : case_.n_kv_heads;
    const int64_t padded = (width + 7) / 8 * 8, blocks = (longest() + 63) / 64;
    const int64_t rows = case_.paged ? 64 : blocks * 64;
    int64_t pages = batch();
    if (case_.paged) pages = page_table(blocks);
    if (case_.format != CINCH_CACHE_16BIT) {
      s.keys.page_stride =
          reference::page_bytes(case_.format, static_cast<int>(columns), case_.key_scales ? case_.n_kv_heads : 0) + 32;
      arrays_.to.keys.assign(static_cast<size_t>(pages * s.keys.page_stride / 2), kNan);
      if (case_.format == CINCH_CACHE_INT4) open_pages(padded + 8, width);
      return;
    }
    s.keys.token_stride = case_.tokens_first ? heads * padded : padded + (latent ? 8 : 0);
    s.keys.head_stride = case_.tokens_first ? padded : rows * s.keys.token_stride;
    s.keys.page_stride = std::max(heads * s.keys.head_stride, rows * s.keys.token_stride) + 16;
    arrays_.to.keys.assign(static_cast<size_t>(pages * s.keys.page_stride), kNan);
    if (latent) return;
    s.values = s.keys;
    s.values.page_stride += 8;
    arrays_.to.values.assign(static_cast<size_t>(pages * s.values.page_stride), kNan);
  }

  /// Pages in no order; what no token needs names none. Returns how many pages there are.
  int64_t page_table(int64_t blocks) {
    CinchCacheAppend& s = arrays_.append;
    s.block_table_stride = blocks + 1;
    arrays_.table.assign(static_cast<size_t>(batch() * s.block_table_stride), 2147480000);
    std::vector<int32_t> order(static_cast<size_t>(batch() * blocks));
    std::iota(order.begin(), order.end(), 1);
    std::shuffle(order.begin(), order.end(), random_);
    for (int64_t b = 0; b < batch(); ++b) {
      const int32_t length = case_.lengths[static_cast<size_t>(b)];
      for (int64_t i = std::max(0, length - case_.tokens) / 64; i * 64 < length; ++i)
        arrays_.table[static_cast<size_t>(b * s.block_table_stride + i)] = order[static_cast<size_t>(b * blocks + i)];
    }
    return batch() * blocks + 1;
  }

  /// Numbers where earlier tokens of the first page stand.
  void open_pages(int64_t token_stride, int64_t width) {
    CinchCacheAppend& s = arrays_.append;
    s.open.token_stride = token_stride;
    s.open.page_stride = 64 * token_stride + 8;
    arrays_.to.open.assign(static_cast<size_t>(batch() * s.open.page_stride), kNan);
    for (int64_t b = 0; b < batch(); ++b) {
      const int begin = std::max(0, case_.lengths[static_cast<size_t>(b)] - case_.tokens);
      for (int64_t row = 0; row < begin % 64; ++row) {
        for (int64_t i = 0; i < width; ++i)
          arrays_.to.open[static_cast<size_t>(b * s.open.page_stride + row * token_stride + i)] = noise();
      }
    }
  }

  AppendCase case_;
  std::mt19937 random_;
  AppendArrays arrays_;
};

/// What the arrays must hold after the append.
inline AppendResult expected_append(const AppendArrays& arrays) {
  AppendArrays copy = arrays;
  copy.point();
  AppendReference(copy.append).run();
  return copy.to;
}

}  // namespace cinch::decode
