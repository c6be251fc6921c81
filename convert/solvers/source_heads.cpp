#include "convert/solvers/source_heads.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

#include "attention/attention_kernel.h"
#include "convert/solvers/linear_algebra.h"

namespace cinch {
namespace {

at::Tensor with_bias_column(const at::Tensor& weight, const at::Tensor& bias, bool biased) {
  if (!biased) return weight;
  const at::Tensor column = bias.defined() ? bias : at::zeros({weight.size(0)}, weight.options());
  return at::cat({weight, column.unsqueeze(1)}, 1);
}

/// 1/rms over the last dim, kept as a dim of 1.
at::Tensor rms_scale(const at::Tensor& x, double eps) { return (x.square().mean(-1, /*keepdim=*/true) + eps).rsqrt(); }

at::Tensor norm_gain(const HeadPlanes& planes, const at::Tensor& norm) {
  return norm.defined() ? fp64(norm).index_select(0, planes.order) * planes.gain : norm;
}

}  // namespace

std::vector<int64_t> SourceHeads::head_order() const {
  std::vector<int64_t> result;
  for (const int64_t kv : kv_order) {
    for (int64_t i = 0; i < rep(); ++i) result.push_back(kv * rep() + i);
  }
  return result;
}

SourceHeads source_heads(const LayerProblem& problem) {
  const GroupedQueryWeights& w = problem.weights;
  SourceHeads heads;
  heads.spec = problem.source;
  heads.planes = head_planes(problem.source, problem.teacher.size(1));
  // With QK-norm the factor on cos and sin belongs to the norm's gain, not to the projection.
  const bool gain = !problem.source.qk_norm, biased = problem.source.qkv_bias;
  heads.q = to_internal(heads.planes, with_bias_column(w.q_proj, w.q_bias, biased), gain);
  heads.k = to_internal(heads.planes, with_bias_column(w.k_proj, w.k_bias, biased), gain);
  const int64_t d = problem.source.head_dim, h = problem.source.n_heads;
  heads.v = fp64(with_bias_column(w.v_proj, w.v_bias, biased)).reshape({-1, d, heads.q.size(2)});
  heads.o = fp64(w.o_proj).reshape({-1, h, d}).transpose(0, 1).contiguous();
  if (w.o_bias.defined()) heads.o_bias = fp64(w.o_bias);
  heads.q_norm = norm_gain(heads.planes, w.q_norm);
  heads.k_norm = norm_gain(heads.planes, w.k_norm);
  heads.kv_order.resize(problem.source.n_kv_heads);
  std::iota(heads.kv_order.begin(), heads.kv_order.end(), int64_t{0});
  return heads;
}

SourceHeads reordered(const SourceHeads& heads, const std::vector<int64_t>& order) {
  SourceHeads result = heads;
  std::vector<int64_t> queries;
  for (size_t i = 0; i < order.size(); ++i) {
    result.kv_order[i] = heads.kv_order[order[i]];
    for (int64_t r = 0; r < heads.rep(); ++r) queries.push_back(order[i] * heads.rep() + r);
  }
  const at::Tensor kv = at::tensor(order, at::kLong), q = at::tensor(queries, at::kLong);
  result.k = heads.k.index_select(0, kv);
  result.v = heads.v.index_select(0, kv);
  result.q = heads.q.index_select(0, q);
  result.o = heads.o.index_select(0, q);
  return result;
}

at::Tensor Projections::linear_keys() const { return k_scale.defined() ? k / k_scale : k; }

HeadStream::HeadStream(const LayerProblem& problem, const SourceHeads& heads) : problem_(&problem), heads_(&heads) {
  projection_ = at::cat({heads.q.flatten(0, 1), heads.k.flatten(0, 1), heads.v.flatten(0, 1)}, 0)
                    .transpose(0, 1)
                    .to(options())
                    .contiguous();
  output_ = heads.o.transpose(1, 2).flatten(0, 1).to(options()).contiguous();
  if (heads.q_norm.defined()) q_norm_ = heads.q_norm.to(options());
  if (heads.k_norm.defined()) k_norm_ = heads.k_norm.to(options());
  table_ = rotation_table(heads.planes, 0, tokens(), options());
}

at::Tensor HeadPart::of_queries(const at::Tensor& x) const { return head ? x[*head] : x; }

at::Tensor HeadPart::of_keys(const at::Tensor& x) const { return head ? x[*head / rep] : x.repeat_interleave(rep, 0); }

std::vector<HeadPart> HeadStream::head_parts() const {
  if (!options().device().is_cpu()) return {{std::nullopt, heads_->rep()}};
  std::vector<HeadPart> parts;
  for (int64_t h = 0; h < heads_->spec.n_heads; ++h) parts.push_back({h, heads_->rep()});
  return parts;
}

std::vector<int64_t> HeadStream::some_fit(int64_t count) const {
  const auto n = static_cast<int64_t>(fit().size());
  count = std::min(count, n);
  std::vector<int64_t> result;
  for (int64_t i = 0; i < count; ++i) result.push_back(fit()[i * n / count]);
  return result;
}

at::Tensor HeadStream::input(const at::Tensor& hidden) const {
  const at::Tensor x = problem_->attention_input(hidden);
  if (x.size(1) == projection_.size(0)) return x;
  return at::cat({x, at::ones({x.size(0), 1}, x.options())}, 1);
}

Projections HeadStream::project(const at::Tensor& input) const {
  const AttentionSpec& spec = heads_->spec;
  const at::Tensor all = at::matmul(input, projection_)
                             .reshape({input.size(0), spec.n_heads + 2 * spec.n_kv_heads, spec.head_dim})
                             .transpose(0, 1);
  const auto parts = all.split_with_sizes({spec.n_heads, spec.n_kv_heads, spec.n_kv_heads}, 0);
  Projections result{parts[0].contiguous(), parts[1].contiguous(), parts[2].contiguous(), {}};
  if (!spec.qk_norm) return result;
  result.k_scale = rms_scale(result.k, spec.qk_norm_eps);
  result.k = result.k * result.k_scale * k_norm_;
  result.q = result.q * rms_scale(result.q, spec.qk_norm_eps) * q_norm_;
  return result;
}

Projections HeadStream::project(int64_t window) const { return project(input(problem_->teacher[window])); }

at::Tensor HeadStream::probabilities(const at::Tensor& q, const at::Tensor& k) const {
  const AttentionSpec& spec = heads_->spec;
  return attention_probabilities({.q = rotate(q, table_).unsqueeze(0),
                                  .k = rotate(k, table_).unsqueeze(0),
                                  .v = {},
                                  .scale = spec.scale,
                                  .window = spec.window,
                                  .softcap = spec.softcap})
      .squeeze(0);
}

at::Tensor HeadStream::output(const at::Tensor& head_outputs) const {
  return at::matmul(head_outputs.transpose(0, 1).flatten(1, 2), output_);
}

ResidualPath residual_path(const LayerProblem& problem) {
  const at::Tensor ones = at::ones({1, problem.source.hidden_size}, problem.teacher.options());
  const at::Tensor gain = problem.attention_residual ? fp64(problem.attention_residual(ones).squeeze(0))
                                                     : at::ones({problem.source.hidden_size}, at::kDouble);
  // A channel that the norm switches off keeps a tiny gain, so that its o_proj row can be mapped back.
  const at::Tensor least = gain.abs().max() * 1e-6;
  return {at::where(gain.abs() < least, least, gain)};
}

at::Tensor residual_factor(const LayerProblem& problem, const ResidualPath& path, const at::Tensor& output) {
  if (!problem.attention_residual) return at::ones({output.size(0)}, output.options());
  const at::Tensor scaled = output * path.gain.to(output.options());
  const at::Tensor power = scaled.square().sum(-1).clamp_min(1e-30);
  return (problem.attention_residual(output) * scaled).sum(-1) / power;
}

at::Tensor token_weights(const at::Tensor& residual, const at::Tensor& factor) {
  return factor.square() / residual.square().sum(-1).clamp_min(1e-30);
}

}  // namespace cinch
