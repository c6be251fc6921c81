// Decode steps with random numbers, for tests on the CPU and on a device: arrays in host memory, with NaN in every
// place that a kernel must not use. No LibTorch, no GoogleTest.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "attention/kernels/decode/page_pack.h"
#include "attention/kernels/decode/reference.h"
#include "attention/kernels/warp/numbers.h"

namespace cinch::decode {

struct DecodeCase {
  int kind = CINCH_DECODE_LATENT, type = CINCH_DECODE_BF16;
  std::vector<int32_t> lengths = {100};
  int n_heads = 16, n_kv_heads = 1;
  int head_dim = 0;        // grouped
  int rank = 0, rope = 0;  // latent
  bool rope_per_kv_head = false, key_scales = false;
  int v_head_dim = 0;  // 0: without value_map
  bool value_bias = false;
  int window = 0;
  float softcap = 0;
  bool paged = true;
  bool tokens_first = false;  // grouped: heads of a token lie side by side
  float spread = 1;           // of queries: large ones make peaked softmaxes
  int cache_format = CINCH_CACHE_16BIT;
  float huge = 0;  // int4: every fifth channel is that large, beyond fp16 where larger than 65504
};

inline std::string name_of(const DecodeCase& c) {
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
  }
  add(" H", c.n_heads);
  add(" K", c.n_kv_heads);
  name += c.type == CINCH_DECODE_BF16 ? " bf16" : " fp16";
  name += c.paged ? " paged" : " dense";
  if (c.tokens_first) name += " tokens-first";
  if (c.rope_per_kv_head) name += " rope/head";
  if (c.key_scales) name += " scales";
  if (c.v_head_dim > 0) add(" Dv", c.v_head_dim);
  if (c.window > 0) add(" window", c.window);
  if (c.softcap > 0) name += " softcap";
  if (c.cache_format != CINCH_CACHE_16BIT) {
    name += c.cache_format == CINCH_CACHE_INT8 ? " int8" : c.cache_format == CINCH_CACHE_FP8 ? " fp8" : " int4";
    if (c.huge > 0) name += " huge";
  }
  for (size_t i = 0; i < c.lengths.size() && i < 6; ++i) add(i == 0 ? " lengths " : ",", c.lengths[i]);
  if (c.lengths.size() > 6) add(",.. of ", static_cast<int>(c.lengths.size()));
  return name;
}

/// The arrays of a case; `step` points into them, so that a copy needs point() again.
struct DecodeArrays {
  std::vector<uint16_t> q, keys, values, value_map, value_bias, out;
  std::vector<uint16_t> open;  // int4; `keys` are then the bytes of pages
  std::vector<int32_t> table, lengths;
  std::vector<float> lse;
  CinchDecodeStep step{};

  void point() {
    step.q = q.data();
    step.keys.data = keys.data();
    step.open.data = open.empty() ? nullptr : open.data();
    step.values.data = values.empty() ? nullptr : values.data();
    step.value_map = value_map.empty() ? nullptr : value_map.data();
    step.value_bias = value_bias.empty() ? nullptr : value_bias.data();
    step.block_table = table.empty() ? nullptr : table.data();
    step.lengths = lengths.data();
    step.out = out.data();
    step.lse = lse.data();
  }
};

class CaseBuilder {
 public:
  CaseBuilder(const DecodeCase& c, uint32_t seed) : case_(c), random_(seed) {}

  DecodeArrays build() {
    shape();
    place_tokens();
    CinchDecodeStep& s = arrays_.step;
    s.q_head_stride = (query_width(s) + 7) / 8 * 8 + 8;
    s.q_batch_stride = s.n_heads * s.q_head_stride + 16;
    arrays_.q = noise(static_cast<size_t>(s.batch * s.q_batch_stride), case_.spread);
    if (case_.v_head_dim > 0) {
      // As in kv_b_proj: other rows stand between those of two heads.
      s.value_map_row_stride = case_.rank;
      s.value_map_head_stride = (case_.v_head_dim + 3) * s.value_map_row_stride;
      arrays_.value_map = noise(static_cast<size_t>(s.n_heads * s.value_map_head_stride),
                                1 / std::sqrt(static_cast<float>(case_.rank)));
      if (case_.value_bias) arrays_.value_bias = noise(static_cast<size_t>(s.n_heads * case_.v_head_dim), 1);
    }
    s.out_head_stride = out_width(s) + 2;
    s.out_batch_stride = s.n_heads * s.out_head_stride + 6;
    arrays_.out.assign(static_cast<size_t>(s.batch * s.out_batch_stride), kNan);
    arrays_.lse.assign(static_cast<size_t>(s.batch * s.n_heads), std::numeric_limits<float>::quiet_NaN());
    arrays_.point();
    return std::move(arrays_);
  }

 private:
  static constexpr uint16_t kNan = 0x7fff;  // in both types

  void shape() {
    CinchDecodeStep& s = arrays_.step;
    s.kind = case_.kind;
    s.type = case_.type;
    s.batch = static_cast<int32_t>(case_.lengths.size());
    s.n_heads = case_.n_heads;
    s.n_kv_heads = case_.n_kv_heads;
    s.head_dim = case_.head_dim;
    s.kv_lora_rank = case_.rank;
    s.qk_rope_head_dim = case_.rope;
    s.rope_per_kv_head = case_.rope_per_kv_head ? 1 : 0;
    s.key_scales = case_.key_scales ? 1 : 0;
    s.v_head_dim = case_.v_head_dim;
    s.window = case_.window;
    s.softcap = case_.softcap;
    s.scale = 1 / std::sqrt(static_cast<float>(query_width(s)));
    s.cache_format = case_.cache_format;
    arrays_.lengths = case_.lengths;
  }

  std::vector<uint16_t> noise(size_t count, float spread) {
    std::normal_distribution<float> normal(0, spread);
    std::vector<uint16_t> bits(count);
    for (uint16_t& value : bits)
      value = case_.type == CINCH_DECODE_BF16 ? Bf16::from_float(normal(random_)) : Fp16::from_float(normal(random_));
    return bits;
  }

  void place_tokens() {
    CinchDecodeStep& s = arrays_.step;
    const bool latent = case_.kind == CINCH_DECODE_LATENT;
    const int heads = latent ? 1 : s.n_kv_heads, width = (row_width(s) + 7) / 8 * 8;
    const int longest = *std::max_element(case_.lengths.begin(), case_.lengths.end());
    const int blocks = std::max(1, (longest + CINCH_DECODE_PAGE - 1) / CINCH_DECODE_PAGE);
    const int tokens = case_.paged ? CINCH_DECODE_PAGE : blocks * CINCH_DECODE_PAGE;
    s.keys.token_stride = case_.tokens_first ? heads * width : width + (latent ? 8 : 0);
    s.keys.head_stride = case_.tokens_first ? width : tokens * s.keys.token_stride;
    s.keys.page_stride = std::max(heads * s.keys.head_stride, tokens * s.keys.token_stride);
    int pages = s.batch;
    if (case_.paged) {
      // Pages in no order, an unused one before the first; what lies beyond a sequence's last page names none.
      s.block_table_stride = blocks + 1;
      arrays_.table.assign(static_cast<size_t>(s.batch * s.block_table_stride), 2147480000);
      std::vector<int32_t> order(static_cast<size_t>(s.batch * blocks));
      std::iota(order.begin(), order.end(), 1);
      std::shuffle(order.begin(), order.end(), random_);
      size_t next = 0;
      for (int b = 0; b < s.batch; ++b) {
        // The open page of int4 has no place among the pages.
        const int last = case_.cache_format == CINCH_CACHE_INT4 ? CINCH_DECODE_PAGE - 1 : 0;
        for (int i = 0; i * CINCH_DECODE_PAGE + last < case_.lengths[static_cast<size_t>(b)]; ++i)
          arrays_.table[static_cast<size_t>(b * s.block_table_stride + i)] = order[next++];
      }
      pages = s.batch * blocks + 1;
    }
    if (case_.cache_format != CINCH_CACHE_16BIT) return fill_pages(pages);
    s.values = latent ? CinchDecodeCache{} : s.keys;
    arrays_.keys = filled(s.keys, pages, heads, /*scales=*/case_.key_scales);
    if (!latent) arrays_.values = filled(s.values, pages, heads, false);
  }

  PageShape page_shape() const {
    const CinchDecodeStep& s = arrays_.step;
    const int scales = s.key_scales != 0 ? s.n_kv_heads : 0;
    return {s.cache_format, s.type, s.kv_lora_rank, row_width(s) - scales - s.kv_lora_rank, scales};
  }
  /// Rows of 64 tokens in fp32.
  std::vector<float> page_rows(const PageShape& shape) {
    std::vector<float> rows;
    for (int token = 0; token < CINCH_DECODE_PAGE; ++token) {
      for (const uint16_t bits : noise(static_cast<size_t>(shape.row_width()), 1)) {
        const auto column = static_cast<int>(rows.size()) % shape.row_width();
        float number = shape.type == CINCH_DECODE_BF16 ? Bf16::to_float(bits) : Fp16::to_float(bits);
        if (case_.huge > 0 && column < shape.columns() && column % 5 == 0) number *= case_.huge;
        rows.push_back(column < shape.columns() ? number : std::abs(number));  // key scales are positive
      }
    }
    return rows;
  }
  /// Pages of bytes that mean NaN or nonsense but for the tokens that the query sees.
  void fill_pages(int pages) {
    CinchDecodeStep& s = arrays_.step;
    const PageShape shape = page_shape();
    const PageLayout layout = shape.layout();
    s.open.token_stride = s.keys.token_stride;
    s.open.page_stride = CINCH_DECODE_PAGE * s.open.token_stride + 8;
    s.keys = {nullptr, layout.page_bytes + 32, 0, 0};
    arrays_.keys.assign(static_cast<size_t>(pages * s.keys.page_stride / 2), 0x7f7f);  // NaN in fp8 and in scales
    for (uint16_t& word : arrays_.keys) word = random_() % 2 == 0 ? uint16_t{0x7fff} : uint16_t{0xff7f};
    if (s.cache_format == CINCH_CACHE_INT4)
      arrays_.open.assign(static_cast<size_t>(s.batch * s.open.page_stride), kNan);
    auto* const bytes = reinterpret_cast<uint8_t*>(arrays_.keys.data());
    std::vector<uint8_t> packed(static_cast<size_t>(layout.page_bytes));
    for (int b = 0; b < s.batch; ++b) {
      const int length = case_.lengths[static_cast<size_t>(b)];
      const int first = case_.window > 0 ? std::max(0, length - case_.window) : 0;
      for (int begin = first / CINCH_DECODE_PAGE * CINCH_DECODE_PAGE; begin < length; begin += CINCH_DECODE_PAGE) {
        const int low = std::max(first - begin, 0), high = std::min(length - begin, int{CINCH_DECODE_PAGE});
        const std::vector<float> rows = page_rows(shape);
        if (s.cache_format == CINCH_CACHE_INT4 && high < CINCH_DECODE_PAGE) {
          fill_open(b, rows, low, high);
          continue;
        }
        pack_page(shape, rows.data(), CINCH_DECODE_PAGE, packed.data());
        const int64_t page = arrays_.table[static_cast<size_t>(b * s.block_table_stride + begin / CINCH_DECODE_PAGE)];
        place_page(layout, packed.data(), low, high, bytes + page * s.keys.page_stride);
      }
    }
  }
  void fill_open(int sequence, const std::vector<float>& rows, int low, int high) {
    const CinchDecodeCache& open = arrays_.step.open;
    const auto width = static_cast<size_t>(row_width(arrays_.step));
    for (int token = low; token < high; ++token) {
      for (size_t i = 0; i < width; ++i) {
        const float number = rows[static_cast<size_t>(token) * width + i];
        arrays_.open[static_cast<size_t>(sequence * open.page_stride + token * open.token_stride) + i] =
            case_.type == CINCH_DECODE_BF16 ? Bf16::from_float(number) : Fp16::from_float(number);
      }
    }
  }
  /// What belongs to tokens [low, high), and scales and zeros of channels.
  void place_page(const PageLayout& layout, const uint8_t* from, int low, int high, uint8_t* to) const {
    const CinchDecodeStep& s = arrays_.step;
    const auto part = [&](int begin, int end) { std::copy(from + begin, from + end, to + begin); };
    const int columns = page_shape().columns();
    const int row = s.cache_format == CINCH_CACHE_INT4 ? columns / 2 : columns;
    for (int token = low; token < high; ++token) {
      part(token * layout.row_bytes, token * layout.row_bytes + row);
      if (s.cache_format != CINCH_CACHE_INT4) part(layout.scales + 4 * token, layout.scales + 4 * token + 4);
      const int scales = s.key_scales != 0 ? 2 * s.n_kv_heads : 0;
      part(layout.key_scales + scales * token, layout.key_scales + scales * (token + 1));
    }
    if (s.cache_format != CINCH_CACHE_INT4) return;
    part(layout.scales, layout.scales + 2 * columns);
    part(layout.zeros, layout.zeros + 2 * columns);
  }

  /// NaN but for the tokens that the query sees.
  std::vector<uint16_t> filled(const CinchDecodeCache& cache, int pages, int heads, bool scales) {
    const CinchDecodeStep& s = arrays_.step;
    std::vector<uint16_t> data(static_cast<size_t>(pages * cache.page_stride), kNan);
    const int width = row_width(s);
    for (int b = 0; b < s.batch; ++b) {
      const int length = case_.lengths[static_cast<size_t>(b)];
      for (int token = case_.window > 0 ? std::max(0, length - case_.window) : 0; token < length; ++token) {
        for (int head = 0; head < heads; ++head) {
          const std::vector<uint16_t> row = noise(static_cast<size_t>(width), 1);
          int64_t at = head * cache.head_stride;
          if (arrays_.table.empty()) {
            at += b * cache.page_stride + token * cache.token_stride;
          } else {
            const auto entry = static_cast<size_t>(b * s.block_table_stride + token / CINCH_DECODE_PAGE);
            at += arrays_.table[entry] * cache.page_stride + token % CINCH_DECODE_PAGE * cache.token_stride;
          }
          std::copy(row.begin(), row.end(), data.begin() + at);
          for (int k = 0; scales && k < s.n_kv_heads; ++k) {
            uint16_t& scale = data[static_cast<size_t>(at + width - s.n_kv_heads + k)];
            scale &= 0x7fff;  // scales are positive
          }
        }
      }
    }
    return data;
  }

  DecodeCase case_;
  std::mt19937 random_;
  DecodeArrays arrays_;
};

/// How far a result is from the reference.
struct DecodeErrors {
  double frobenius = 0;  // of out, relative, of the worst sequence
  double lse = 0;        // largest |error| / max(1, |lse|); infinity where one is infinite and the other not
  bool empty_ok = true;  // sequences without tokens: out 0 (value_bias not added), lse -infinity
  bool tail_ok = true;   // the gaps between rows of out are untouched
  bool good() const { return frobenius < 5e-3 && lse <= 1e-5 && empty_ok && tail_ok; }
  std::string text() const {
    return "out " + std::to_string(frobenius) + ", lse " + std::to_string(lse) + (empty_ok ? "" : ", empty sequence") +
           (tail_ok ? "" : ", gaps written");
  }
};

inline DecodeErrors compare(const DecodeArrays& arrays, const ReferenceResult& expected) {
  const CinchDecodeStep& s = arrays.step;
  const int width = out_width(s);
  DecodeErrors errors;
  for (int b = 0; b < s.batch; ++b) {
    double difference = 0, norm = 0;
    for (int h = 0; h < s.n_heads; ++h) {
      const auto row = static_cast<size_t>(b * s.n_heads + h);
      const auto at = static_cast<size_t>(b * s.out_batch_stride + h * s.out_head_stride);
      for (int i = 0; i < s.out_head_stride; ++i) {
        const uint16_t bits = arrays.out[at + static_cast<size_t>(i)];
        if (i >= width) {
          errors.tail_ok = errors.tail_ok && bits == 0x7fff;
          continue;
        }
        const double found = s.type == CINCH_DECODE_BF16 ? Bf16::to_float(bits) : Fp16::to_float(bits);
        const double wanted = expected.out[row * static_cast<size_t>(width) + static_cast<size_t>(i)];
        if (s.lengths[b] <= 0) {
          errors.empty_ok = errors.empty_ok && found == 0;
        } else {
          difference += (found - wanted) * (found - wanted);
          norm += wanted * wanted;
        }
      }
      const double lse = static_cast<double>(arrays.lse[row]);
      if (s.lengths[b] <= 0) {
        errors.empty_ok = errors.empty_ok && std::isinf(lse) && lse < 0;
        continue;
      }
      const double error = std::abs(lse - expected.lse[row]) / std::max(1.0, std::abs(expected.lse[row]));
      if (!(error <= errors.lse)) errors.lse = std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
    }
    const double frobenius = norm > 0 ? std::sqrt(difference / norm) : 0;
    if (!(frobenius <= errors.frobenius))
      errors.frobenius = std::isnan(frobenius) ? std::numeric_limits<double>::infinity() : frobenius;
  }
  return errors;
}

}  // namespace cinch::decode
