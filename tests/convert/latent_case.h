// Random attention layers for the latent solvers, in fp64.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "convert/solvers/latent_fit.h"

namespace cinch {

struct LatentCase {
  std::string name;
  int64_t heads = 6, kv_heads = 2, head_dim = 16;
  bool bias = false, qk_norm = false, output_bias = false;
  double softcap = 0, theta = 1e5;
  int64_t window = 0, rotary_dim = 0;  // 0: all of head_dim

  int64_t hidden() const { return 2 * all_keys() + 5; }  // so that no key or value depends on the others
  int64_t all_keys() const { return kv_heads * head_dim; }
  AttentionSpec spec() const {
    AttentionSpec spec;
    spec.hidden_size = hidden();
    spec.n_heads = heads;
    spec.n_kv_heads = kv_heads;
    spec.head_dim = head_dim;
    spec.scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
    spec.qkv_bias = bias;
    spec.output_bias = output_bias;
    spec.qk_norm = qk_norm;
    spec.softcap = softcap;
    spec.window = window;
    spec.rope.theta = theta;
    spec.rope.rotary_dim = rotary_dim > 0 ? rotary_dim : head_dim;
    return spec;
  }
  GroupedQueryWeights random_weights() const {
    // Scores of a few units, so that the softmax is neither flat nor one key's.
    const double size = 1.5 / std::sqrt(static_cast<double>(hidden()));
    const auto random = [&](std::vector<int64_t> shape) { return at::randn(shape, at::kDouble) * size; };
    const int64_t q = heads * head_dim, kv = all_keys();
    GroupedQueryWeights w{.q_proj = random({q, hidden()}),
                          .k_proj = random({kv, hidden()}),
                          .v_proj = random({kv, hidden()}),
                          .o_proj = random({hidden(), q}),
                          .q_bias = {},
                          .k_bias = {},
                          .v_bias = {},
                          .o_bias = {},
                          .q_norm = {},
                          .k_norm = {}};
    if (bias) {
      w.q_bias = random({q});
      w.k_bias = random({kv});
      w.v_bias = random({kv});
    }
    if (output_bias) w.o_bias = random({hidden()});
    if (qk_norm) {
      w.q_norm = 1 + random({head_dim});
      w.k_norm = 1 + random({head_dim});
    }
    return w;
  }
};

inline void PrintTo(const LatentCase& c, std::ostream* out) { *out << c.name; }

/// A layer with its streams, heads and moments.
struct LatentLayer {
  LatentLayer(const LatentCase& c, const GroupedQueryWeights& weights, const at::Tensor& teacher)
      : problem(make(c, weights, teacher)),
        heads(source_heads(problem)),
        stream(problem, heads),
        moments(latent_moments(stream, heads)) {}
  LatentLayer(const LatentLayer&) = delete;
  LatentLayer& operator=(const LatentLayer&) = delete;

  RotarySurvey survey(bool single) const { return RotarySurvey(heads, moments, plane_groups(heads.planes, single)); }
  RotaryMaps rotary(int64_t rotary_dim) const {
    const RotarySurvey own = survey(rotary_dim == heads.spec.n_kv_heads * heads.spec.head_dim);
    return own.maps(choose_slots({&own}, rotary_dim));
  }
  LatentMaps fit(int64_t rank, int64_t rotary_dim) const {
    const RotaryMaps maps = rotary(rotary_dim);
    const LatentBasis basis = latent_basis(latent_spectrum(heads, moments, maps), rank);
    return latent_maps(heads, maps, basis, up_map_moments(stream, heads, maps, basis));
  }
  /// Attention output on the original stream, (W, T, E).
  at::Tensor original() const {
    return GroupedQueryAttention(problem.source, problem.weights).forward(problem.teacher, 0, 0, nullptr);
  }
  at::Tensor converted(const LatentMaps& maps) const {
    const LatentForward forward(stream, heads, maps);
    std::vector<at::Tensor> outputs;
    for (int64_t w = 0; w < problem.teacher.size(0); ++w)
      outputs.push_back(forward.output(forward.head_outputs(stream.input(problem.teacher[w]))));
    return at::stack(outputs);
  }
  /// Squared error over squared output.
  double error(const LatentMaps& maps) const {
    const at::Tensor y = original();
    return ((converted(maps) - y).square().sum() / y.square().sum()).item<double>();
  }

  LayerProblem problem;
  SourceHeads heads;
  HeadStream stream;
  LatentMoments moments;

 private:
  static LayerProblem make(const LatentCase& c, const GroupedQueryWeights& weights, const at::Tensor& teacher) {
    LayerProblem p;
    p.source = p.target = c.spec();
    p.weights = weights;
    p.teacher = p.student = teacher;
    for (int64_t w = 0; w < teacher.size(0); ++w) p.windows.fit.push_back(w);
    p.attention_input = [](const at::Tensor& h) { return h; };
    p.attention_residual = [](const at::Tensor& y) { return y; };
    return p;
  }
};

inline double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).abs().max() / b.abs().max()).item<double>();
}

}  // namespace cinch
