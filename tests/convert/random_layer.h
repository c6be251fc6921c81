// A random attention layer on random fp64 streams, for tests of single solvers.
#pragma once

#include <ATen/ATen.h>

#include <cmath>
#include <vector>

#include "convert/solvers/source_heads.h"
#include "convert/transform.h"

namespace cinch {

struct RandomLayer {
  int64_t heads = 6, kv_heads = 3, head_dim = 8, hidden = 20, target = 1;
  int64_t windows = 4, tokens = 12;
  int64_t rotary_dim = -1;  // all of the head
  bool bias = false, output_bias = false, qk_norm = false;
  int64_t sliding_window = 0;

  int64_t rep() const { return heads / kv_heads; }

  AttentionSpec spec() const {
    AttentionSpec spec;
    spec.hidden_size = hidden;
    spec.n_heads = heads;
    spec.n_kv_heads = kv_heads;
    spec.head_dim = head_dim;
    spec.scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
    spec.window = sliding_window;
    spec.qkv_bias = bias;
    spec.output_bias = output_bias;
    spec.qk_norm = qk_norm;
    spec.rope.rotary_dim = rotary_dim < 0 ? head_dim : rotary_dim;
    return spec;
  }

  /// Every window is fitted on; the student's stream is the teacher's. The same for the same seed.
  LayerProblem problem(uint64_t seed = 5) const {
    at::manual_seed(seed);
    const auto random = [](std::vector<int64_t> shape) { return at::randn(shape, at::kDouble) * 0.4; };
    LayerProblem p;
    p.source = p.target = spec();
    p.target.n_kv_heads = target;
    const int64_t q = heads * head_dim, kv = kv_heads * head_dim;
    p.weights = {.q_proj = random({q, hidden}),
                 .k_proj = random({kv, hidden}),
                 .v_proj = random({kv, hidden}),
                 .o_proj = random({hidden, q})};
    if (bias) {
      p.weights.q_bias = random({q});
      p.weights.k_bias = random({kv});
      p.weights.v_bias = random({kv});
    }
    if (output_bias) p.weights.o_bias = random({hidden});
    if (qk_norm) {
      p.weights.q_norm = 1 + random({head_dim});
      p.weights.k_norm = 1 + random({head_dim});
    }
    p.teacher = at::randn({windows, tokens, hidden}, at::kDouble);
    p.student = p.teacher.clone();
    for (int64_t w = 0; w < windows; ++w) p.windows.fit.push_back(w);
    p.attention_input = [](const at::Tensor& h) { return h; };
    p.output_bias_allowed = output_bias;
    return p;
  }
};

inline double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

/// Samples x (N, n) of heads side by side -> E x x^T as (g, D, g, D).
inline at::Tensor joint_moment(const at::Tensor& samples, int64_t heads) {
  const int64_t d = samples.size(1) / heads;
  return (at::matmul(samples.t(), samples) / static_cast<double>(samples.size(0))).reshape({heads, d, heads, d});
}

/// Planes of a head whose rotary dims are `rotary_dim`, for tests that need no layer.
inline HeadPlanes planes_of(int64_t head_dim, int64_t rotary_dim) {
  AttentionSpec spec;
  spec.head_dim = head_dim;
  spec.rope.rotary_dim = rotary_dim;
  return head_planes(spec, 64);
}

}  // namespace cinch
