// Prefill attention of random numbers, for tests on the CPU and on a device: arrays in host memory, with NaN in every
// place that a kernel must not use. No LibTorch, no GoogleTest.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "attention/kernels/prefill/reference.h"
#include "attention/kernels/warp/numbers.h"

namespace cinch::prefill {

struct PrefillCase {
  int type = CINCH_PREFILL_BF16;
  int batch = 1, n_heads = 2, n_kv_heads = 1;
  int queries = 64, keys = 64;
  int head_dim = 64, v_head_dim = 64;
  int first_query = -1000;  // below 0: the queries stand at the end of the keys
  int window = 0;
  float softcap = 0;
  bool documents = false;
  bool tokens_first = true;  // heads of a token lie side by side
  float spread = 1;          // of queries: large ones make peaked softmaxes
};

inline std::string name_of(const PrefillCase& c) {
  std::string name = c.type == CINCH_PREFILL_BF16 ? "bf16" : "fp16";
  const auto add = [&name](const char* key, int value) { name += key + std::to_string(value); };
  add(" B", c.batch);
  add(" H", c.n_heads);
  add(" K", c.n_kv_heads);
  add(" T", c.queries);
  add(" S", c.keys);
  add(" D", c.head_dim);
  add(" Dv", c.v_head_dim);
  if (c.first_query > -1000) add(" first query ", c.first_query);
  if (c.window > 0) add(" window ", c.window);
  if (c.softcap > 0) name += " softcap";
  if (c.documents) name += " documents";
  if (!c.tokens_first) name += " heads-first";
  return name;
}

/// The arrays of a case; `work` points into them, so that a copy needs point() again.
struct PrefillArrays {
  std::vector<uint16_t> q, k, v, out, d_out, d_q, d_k, d_v;
  std::vector<float> lse;
  std::vector<int32_t> first_keys;
  std::vector<uint64_t> row_states;
  CinchPrefill work{};

  void point() {
    work.q.data = q.data();
    work.k.data = k.data();
    work.v.data = v.data();
    work.out.data = out.data();
    work.d_out.data = d_out.data();
    work.d_q.data = d_q.data();
    work.d_k.data = d_k.data();
    work.d_v.data = d_v.data();
    work.lse = lse.data();
    work.first_keys = first_keys.empty() ? nullptr : first_keys.data();
    work.row_states = row_states.data();
  }
};

constexpr uint16_t kNanBits = 0x7fff;  // in both types

class PrefillBuilder {
 public:
  PrefillBuilder(const PrefillCase& c, uint32_t seed) : case_(c), random_(seed) {}

  PrefillArrays build() {
    CinchPrefill& w = arrays_.work;
    w.type = case_.type;
    w.batch = case_.batch;
    w.n_heads = case_.n_heads;
    w.n_kv_heads = case_.n_kv_heads;
    w.queries = case_.queries;
    w.keys = case_.keys;
    w.head_dim = case_.head_dim;
    w.v_head_dim = case_.v_head_dim;
    w.first_query = case_.first_query > -1000 ? case_.first_query : case_.keys - case_.queries;
    w.window = case_.window;
    w.softcap = case_.softcap;
    w.scale = 1 / std::sqrt(static_cast<float>(case_.head_dim));
    if (case_.documents) pack_documents();
    const int H = w.n_heads, K = w.n_kv_heads, T = w.queries, S = w.keys, D = w.head_dim, Dv = w.v_head_dim;
    arrays_.q = noise(w.q, H, T, D, case_.spread);
    arrays_.k = noise(w.k, K, S, D, 1);
    arrays_.v = noise(w.v, K, S, Dv, 1);
    arrays_.d_out = noise(w.d_out, H, T, Dv, 1);
    arrays_.out = empty(w.out, H, T, Dv);
    arrays_.d_q = empty(w.d_q, H, T, D);
    arrays_.d_k = empty(w.d_k, K, S, D);
    arrays_.d_v = empty(w.d_v, K, S, Dv);
    arrays_.lse.assign(static_cast<size_t>(w.batch * H * T), std::numeric_limits<float>::quiet_NaN());
    arrays_.row_states.assign(2 * arrays_.lse.size() + 2, ~uint64_t{0});
    arrays_.point();
    return std::move(arrays_);
  }

 private:
  /// Documents of 1 to about a third of the queries, some of which began before the first query.
  void pack_documents() {
    CinchPrefill& w = arrays_.work;
    std::uniform_int_distribution<int> length(1, std::max(2, w.queries / 3));
    w.first_keys_stride = w.queries + 3;
    arrays_.first_keys.assign(static_cast<size_t>(w.batch * w.first_keys_stride), 1 << 30);
    for (int b = 0; b < w.batch; ++b) {
      int start = std::max(0, w.first_query - length(random_));
      int next = w.first_query + length(random_);
      for (int t = 0; t < w.queries; ++t) {
        if (w.first_query + t == next) {
          start = next;
          next += length(random_);
        }
        arrays_.first_keys[static_cast<size_t>(b * w.first_keys_stride + t)] = start;
      }
    }
  }

  /// Strides with gaps between rows, heads and sequences; NaN everywhere.
  std::vector<uint16_t> empty(CinchPrefillArray& array, int heads, int tokens, int columns) const {
    const int64_t row = columns + 8;
    array.token_stride = case_.tokens_first ? row * heads + 8 : row;
    array.head_stride = case_.tokens_first ? row : row * tokens + 16;
    array.batch_stride = std::max(array.token_stride * tokens, array.head_stride * heads) + 24;
    return std::vector<uint16_t>(static_cast<size_t>(array.batch_stride * case_.batch), kNanBits);
  }
  std::vector<uint16_t> noise(CinchPrefillArray& array, int heads, int tokens, int columns, float spread) {
    std::vector<uint16_t> data = empty(array, heads, tokens, columns);
    std::normal_distribution<float> normal(0, spread);
    for (int b = 0; b < case_.batch; ++b) {
      for (int h = 0; h < heads; ++h) {
        for (int t = 0; t < tokens; ++t) {
          for (int i = 0; i < columns; ++i) {
            const float value = normal(random_);
            data[static_cast<size_t>(b * array.batch_stride + h * array.head_stride + t * array.token_stride + i)] =
                case_.type == CINCH_PREFILL_BF16 ? warp::Bf16::from_float(value) : warp::Fp16::from_float(value);
          }
        }
      }
    }
    return data;
  }

  PrefillCase case_;
  std::mt19937 random_;
  PrefillArrays arrays_;
};

/// How far results are from the reference.
struct PrefillErrors {
  double out = 0, d_q = 0, d_k = 0, d_v = 0;  // relative Frobenius errors
  double lse = 0;        // largest |error| / max(1, |lse|); infinity where one is infinite and the other not
  bool gaps_ok = true;   // what lies between rows is untouched
  bool blind_ok = true;  // queries that see no key: out and gradient exactly 0
  bool good() const {
    return out < 5e-3 && d_q < 5e-3 && d_k < 5e-3 && d_v < 5e-3 && lse <= 1e-5 && gaps_ok && blind_ok;
  }
  std::string text() const {
    return "out " + std::to_string(out) + ", lse " + std::to_string(lse) + ", d_q " + std::to_string(d_q) + ", d_k " +
           std::to_string(d_k) + ", d_v " + std::to_string(d_v) + (gaps_ok ? "" : ", gaps written") +
           (blind_ok ? "" : ", queries without keys");
  }
};

class PrefillComparison {
 public:
  explicit PrefillComparison(const PrefillArrays& arrays) : arrays_(arrays), work_(arrays.work) {}

  void forward(const ReferenceForward& expected) {
    expect_blind(arrays_.out, work_.out, work_.v_head_dim, expected);
    errors_.out = frobenius(arrays_.out, work_.out, work_.n_heads, work_.queries, work_.v_head_dim, expected.out);
    for (size_t i = 0; i < arrays_.lse.size(); ++i) {
      const double found = static_cast<double>(arrays_.lse[i]), wanted = expected.lse[i];
      const double error = found == wanted ? 0 : std::abs(found - wanted) / std::max(1.0, std::abs(wanted));
      if (!(error <= errors_.lse)) errors_.lse = std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
    }
  }
  void backward(const ReferenceForward& forward, const ReferenceGradients& expected) {
    expect_blind(arrays_.d_q, work_.d_q, work_.head_dim, forward);
    errors_.d_q = frobenius(arrays_.d_q, work_.d_q, work_.n_heads, work_.queries, work_.head_dim, expected.d_q);
    errors_.d_k = frobenius(arrays_.d_k, work_.d_k, work_.n_kv_heads, work_.keys, work_.head_dim, expected.d_k);
    errors_.d_v = frobenius(arrays_.d_v, work_.d_v, work_.n_kv_heads, work_.keys, work_.v_head_dim, expected.d_v);
  }
  const PrefillErrors& errors() const { return errors_; }

 private:
  void expect_blind(const std::vector<uint16_t>& data, const CinchPrefillArray& array, int columns,
                    const ReferenceForward& expected) {
    for (int row = 0; row < work_.batch * work_.n_heads * work_.queries; ++row) {
      if (!std::isinf(expected.lse[static_cast<size_t>(row)])) continue;
      const int t = row % work_.queries, h = row / work_.queries % work_.n_heads,
                b = row / work_.queries / work_.n_heads;
      const auto at = static_cast<size_t>(b * array.batch_stride + h * array.head_stride + t * array.token_stride);
      for (size_t i = 0; i < static_cast<size_t>(columns); ++i)
        errors_.blind_ok = errors_.blind_ok && (data[at + i] & 0x7fff) == 0;
    }
  }

  /// Of numbers that are all zero in the reference (gradients of one key's softmax), 50 times the root mean square:
  /// below 1e-4 is good.
  double frobenius(const std::vector<uint16_t>& data, const CinchPrefillArray& array, int heads, int tokens,
                   int columns, const std::vector<double>& expected) {
    std::vector<bool> used(data.size());
    double difference = 0, norm = 0;
    size_t at = 0;
    for (int b = 0; b < work_.batch; ++b) {
      for (int h = 0; h < heads; ++h) {
        for (int t = 0; t < tokens; ++t) {
          for (int i = 0; i < columns; ++i, ++at) {
            const auto place =
                static_cast<size_t>(b * array.batch_stride + h * array.head_stride + t * array.token_stride + i);
            used[place] = true;
            const double found =
                static_cast<double>(work_.type == CINCH_PREFILL_BF16 ? warp::Bf16::to_float(data[place])
                                                                     : warp::Fp16::to_float(data[place]));
            difference += (found - expected[at]) * (found - expected[at]);
            norm += expected[at] * expected[at];
          }
        }
      }
    }
    for (size_t i = 0; i < data.size(); ++i) errors_.gaps_ok = errors_.gaps_ok && (used[i] || data[i] == kNanBits);
    const double error =
        norm > 0 ? std::sqrt(difference / norm) : 50 * std::sqrt(difference / static_cast<double>(expected.size()));
    return std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
  }

  const PrefillArrays& arrays_;
  const CinchPrefill& work_;
  PrefillErrors errors_;
};

}  // namespace cinch::prefill
