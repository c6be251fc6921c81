// The attention of a source layer in the solvers' coordinates (rotation.h), and its activations on the calibration
// windows.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "convert/solvers/rotation.h"
#include "convert/transform.h"

namespace cinch {

/// Projections per head, fp64. C = E, or E + 1 with biases: the inputs then carry a column of ones.
struct SourceHeads {
  AttentionSpec spec;
  HeadPlanes planes;
  at::Tensor q;                   // (H, D, C)
  at::Tensor k, v;                // (K, D, C)
  at::Tensor o;                   // (H, E, D), o_proj per head
  at::Tensor o_bias;              // (E) or undefined
  at::Tensor q_norm, k_norm;      // (D) fp64 in internal order, undefined without QK-norm
  std::vector<int64_t> kv_order;  // (K) source KV head at each place; groups are contiguous

  int64_t rep() const { return spec.group_size(); }  // query heads per source KV head
  /// Source query head at each place.
  std::vector<int64_t> head_order() const;
};

SourceHeads source_heads(const LayerProblem& problem);
/// The same heads with the KV head at place i taken from place order[i]; query heads follow.
SourceHeads reordered(const SourceHeads& heads, const std::vector<int64_t>& order);

struct Projections {
  at::Tensor q;        // (H, T, D) before RoPE, after QK-norm
  at::Tensor k, v;     // (K, T, D)
  at::Tensor k_scale;  // (K, T, 1) the 1/rms that QK-norm has put into k; undefined without QK-norm

  /// Keys that are linear in the input: without that factor, with the norm's gain.
  at::Tensor linear_keys() const;
};

/// Heads that are worked on at once: one, whose scores then stay in a core's cache, or all, where launching is what
/// costs. Tensors of a single head have no dim of heads.
struct HeadPart {
  std::optional<int64_t> head;  // none: all
  int64_t rep = 1;              // of SourceHeads

  /// Of a tensor (H, ...), a view.
  at::Tensor of_queries(const at::Tensor& x) const;
  /// Of a tensor (K, ...), for each query head the part that it sees.
  at::Tensor of_keys(const at::Tensor& x) const;
};

/// Runs the source heads over calibration windows in the problem's dtype, on its device.
class HeadStream {
 public:
  HeadStream(const LayerProblem& problem, const SourceHeads& heads);

  /// Windows that fits may use.
  const std::vector<int64_t>& fit() const { return problem_->windows.fit; }
  /// The heads one by one on the CPU, together on a device.
  std::vector<HeadPart> head_parts() const;
  /// At most `count` windows to fit on, evenly spread.
  std::vector<int64_t> some_fit(int64_t count) const;

  /// What the projections read, (T, C), from a residual stream (T, E): the normed input, with its column of ones.
  at::Tensor input(const at::Tensor& hidden) const;
  /// Of an input (T, C).
  Projections project(const at::Tensor& input) const;
  /// Of a window of the original stream.
  Projections project(int64_t window) const;
  const RotationTable& table() const { return table_; }
  /// Softmax probabilities (H, T, T) from q (H, T, D) and k (K', T, D) before RoPE; H a multiple of K'.
  at::Tensor probabilities(const at::Tensor& q, const at::Tensor& k) const;
  /// o_proj output (T, E) of head outputs (H, T, D), without bias.
  at::Tensor output(const at::Tensor& head_outputs) const;

  /// Residual stream of the original model before the layer, (T, E).
  at::Tensor teacher(int64_t window) const { return problem_->teacher[window]; }
  int64_t tokens() const { return problem_->teacher.size(1); }
  at::TensorOptions options() const { return problem_->teacher.options(); }

 private:
  const LayerProblem* problem_;
  const SourceHeads* heads_;
  // In the problem's dtype, on its device.
  at::Tensor projection_;       // (C, (H + 2K) D)
  at::Tensor output_;           // (H*D, E)
  at::Tensor q_norm_, k_norm_;  // (D) or undefined
  RotationTable table_;
};

/// How the o_proj output y reaches the residual stream: as factor(y) * gain * y, where the factor is 1 unless a norm
/// follows attention (Gemma-2), then 1/rms(y) of each token.
struct ResidualPath {
  at::Tensor gain;  // (E) fp64, no zeros
};
ResidualPath residual_path(const LayerProblem& problem);
/// (T) factor of each token, from o_proj outputs (T, E).
at::Tensor residual_factor(const LayerProblem& problem, const ResidualPath& path, const at::Tensor& output);
/// (T) weights of tokens in output fits: factor^2 / |h|^2 with h (T, E) the original residual stream. Without it the
/// few tokens of huge norm (attention sinks) would be all that is fitted.
at::Tensor token_weights(const at::Tensor& residual, const at::Tensor& factor);

}  // namespace cinch
