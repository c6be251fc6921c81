#include "attention/kernels/prefill/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/kernels/warp/numbers.h"

namespace cinch::prefill {
namespace {

/// One row of an array, as doubles.
std::vector<double> row(const CinchPrefill& w, const CinchPrefillArray& a, int b, int head, int token, int columns) {
  const auto* const bits =
      static_cast<const uint16_t*>(a.data) + b * a.batch_stride + head * a.head_stride + token * a.token_stride;
  std::vector<double> values(static_cast<size_t>(columns));
  for (int i = 0; i < columns; ++i) {
    values[static_cast<size_t>(i)] = static_cast<double>(w.type == CINCH_PREFILL_BF16 ? warp::Bf16::to_float(bits[i])
                                                                                      : warp::Fp16::to_float(bits[i]));
  }
  return values;
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}
void add(double* to, double factor, const std::vector<double>& values) {
  for (size_t i = 0; i < values.size(); ++i) to[i] += factor * values[i];
}

bool sees(const CinchPrefill& w, int b, int query, int key) {
  const int own = w.first_query + query;
  if (key > own) return false;
  if (w.window > 0 && own - key >= w.window) return false;
  return w.first_keys == nullptr || key >= w.first_keys[b * w.first_keys_stride + query];
}

/// One query's keys: which, their weights, and what the soft cap does to a score's gradient.
struct Weights {
  std::vector<int> keys;
  std::vector<double> weights, slopes;
  double lse = -std::numeric_limits<double>::infinity();
};

Weights weigh(const CinchPrefill& w, int b, int head, int query) {
  Weights result;
  const std::vector<double> q = row(w, w.q, b, head, query, w.head_dim);
  const double softcap = static_cast<double>(w.softcap);
  for (int s = 0; s < w.keys; ++s) {
    if (!sees(w, b, query, s)) continue;
    double score =
        static_cast<double>(w.scale) * dot(q, row(w, w.k, b, head / (w.n_heads / w.n_kv_heads), s, w.head_dim));
    double slope = 1;
    if (softcap > 0) {
      const double bent = std::tanh(score / softcap);
      score = softcap * bent;
      slope = 1 - bent * bent;
    }
    result.keys.push_back(s);
    result.weights.push_back(score);
    result.slopes.push_back(slope);
  }
  if (result.keys.empty()) return result;
  const double top = *std::max_element(result.weights.begin(), result.weights.end());
  double sum = 0;
  for (double& weight : result.weights) sum += weight = std::exp(weight - top);
  for (double& weight : result.weights) weight /= sum;
  result.lse = top + std::log(sum);
  return result;
}

}  // namespace

ReferenceForward reference_forward(const CinchPrefill& w) {
  const auto rows = static_cast<size_t>(w.batch) * static_cast<size_t>(w.n_heads) * static_cast<size_t>(w.queries);
  const auto width = static_cast<size_t>(w.v_head_dim);
  ReferenceForward result{std::vector<double>(rows * width), std::vector<double>(rows)};
  size_t at = 0;
  for (int b = 0; b < w.batch; ++b) {
    for (int h = 0; h < w.n_heads; ++h) {
      for (int t = 0; t < w.queries; ++t, ++at) {
        const Weights seen = weigh(w, b, h, t);
        result.lse[at] = seen.lse;
        for (size_t i = 0; i < seen.keys.size(); ++i) {
          add(&result.out[at * width], seen.weights[i],
              row(w, w.v, b, h / (w.n_heads / w.n_kv_heads), seen.keys[i], w.v_head_dim));
        }
      }
    }
  }
  return result;
}

ReferenceGradients reference_backward(const CinchPrefill& w) {
  const int group = w.n_heads / w.n_kv_heads;
  const auto size = [&](int heads, int tokens, int columns) {
    return static_cast<size_t>(w.batch) * static_cast<size_t>(heads) * static_cast<size_t>(tokens) *
           static_cast<size_t>(columns);
  };
  ReferenceGradients result{std::vector<double>(size(w.n_heads, w.queries, w.head_dim)),
                            std::vector<double>(size(w.n_kv_heads, w.keys, w.head_dim)),
                            std::vector<double>(size(w.n_kv_heads, w.keys, w.v_head_dim))};
  for (int b = 0; b < w.batch; ++b) {
    for (int h = 0; h < w.n_heads; ++h) {
      for (int t = 0; t < w.queries; ++t) {
        const Weights seen = weigh(w, b, h, t);
        const std::vector<double> q = row(w, w.q, b, h, t, w.head_dim);
        const std::vector<double> d_out = row(w, w.d_out, b, h, t, w.v_head_dim);
        std::vector<double> d_weights;
        double delta = 0;  // sum of weights times their gradients
        for (size_t i = 0; i < seen.keys.size(); ++i) {
          d_weights.push_back(dot(d_out, row(w, w.v, b, h / group, seen.keys[i], w.v_head_dim)));
          delta += seen.weights[i] * d_weights.back();
        }
        const size_t query = size_t(b * w.n_heads + h) * size_t(w.queries) + size_t(t);
        for (size_t i = 0; i < seen.keys.size(); ++i) {
          const size_t key = size_t(b * w.n_kv_heads + h / group) * size_t(w.keys) + size_t(seen.keys[i]);
          const double d_score =
              static_cast<double>(w.scale) * seen.slopes[i] * seen.weights[i] * (d_weights[i] - delta);
          add(&result.d_v[key * size_t(w.v_head_dim)], seen.weights[i], d_out);
          add(&result.d_k[key * size_t(w.head_dim)], d_score, q);
          add(&result.d_q[query * size_t(w.head_dim)], d_score, row(w, w.k, b, h / group, seen.keys[i], w.head_dim));
        }
      }
    }
  }
  return result;
}

}  // namespace cinch::prefill
