#include "convert/solvers/latent_query_refit.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <random>

#include "convert/solvers/conjugate_gradient.h"
#include "convert/solvers/linear_algebra.h"
#include "convert/solvers/softmax_metric.h"
#include "convert/solvers/softmax_rows.h"

namespace cinch {
namespace {

constexpr double kFeatureDamping = 1e-4, kQueryDamping = 1e-3;
constexpr int64_t kBlock = 24;  // queries, on the CPU: on devices launching costs more than the keys after a query

/// One random position in each of `count` equal strata of 0..tokens-1.
at::Tensor stratified(int64_t tokens, int64_t count, uint64_t seed) {
  count = std::min(count, tokens);
  std::mt19937_64 random(seed);
  std::vector<int64_t> positions;
  for (int64_t i = 0; i < count; ++i) {
    const double u = static_cast<double>(random() >> 11) * 0x1p-53;
    positions.push_back(
        static_cast<int64_t>((static_cast<double>(i) + u) * static_cast<double>(tokens) / static_cast<double>(count)));
  }
  return at::tensor(positions, at::kLong);
}

}  // namespace

LatentQueryProblem::LatentQueryProblem(const HeadStream& stream, const SourceHeads& heads, const LatentMaps& maps,
                                       int64_t positions)
    : options_(stream.options()), start_(maps.query) {
  const int64_t t = stream.tokens(), d = heads.spec.head_dim, k = heads.spec.n_kv_heads, n = heads.spec.n_heads;
  const LatentForward forward(stream, heads, maps);
  const RotationTable pairs = pair_table(maps.inv_freq, t, stream.options());
  const at::Tensor start = device_maps(start_);
  feature_moment_ = at::zeros({n, start_.size(1), start_.size(1)}, options_.dtype(at::kDouble));
  const std::vector<HeadPart> parts = stream.head_parts();
  for (const int64_t w : stream.fit()) {
    positions_.push_back(stratified(t, positions, static_cast<uint64_t>(w)));
    const at::Tensor input = stream.input(stream.teacher(w)), features = forward.features(input);
    const Projections x = stream.project(input);
    const at::Tensor keys = rotate(x.k, stream.table());
    for (const at::Tensor& own : positions_.back().split(options_.device().is_cpu() ? kBlock : positions)) {
      const int64_t m = own.size(0), end = own[m - 1].item<int64_t>() + 1;
      const at::Tensor index = own.to(options_.device());
      Block block{.features = features.slice(0, 0, end),
                  .queries = x.q.index_select(1, index),
                  .table = select_positions(pairs, index),
                  .weight = {},
                  .mean = {},
                  .key_scale = {}};
      const at::Tensor turned = rotate(block.queries, select_positions(stream.table(), index));
      const at::Tensor original =
          at::bmm(turned.reshape({k, heads.rep() * m, d}), keys.slice(1, 0, end).transpose(1, 2)).reshape({n, m, end});
      const SoftmaxRows rows = softmax_rows(heads.spec, original, causal_mask(heads.spec, index, end, options_));
      block.mean = rows.slope.defined() ? rows.p * rows.slope : rows.p;
      block.weight = rows.slope.defined() ? block.mean * rows.slope : rows.p;
      if (x.k_scale.defined())
        block.key_scale = x.k_scale.slice(1, 0, end).transpose(1, 2).repeat_interleave(heads.rep(), 0);
      const at::Tensor error = original - scores(block, start);
      const at::Tensor gradient = softmax_gradient_(error.clone(), block.weight, block.mean);
      accumulate(start_loss_, (gradient * error).sum({1, 2}));
      accumulate(right_side_, pulled_back(block, gradient));
      accumulate(query_moment_, at::bmm(block.queries.transpose(1, 2), block.queries));
      for (const HeadPart& part : parts) add_moments(block, part, maps.rank());
      count_ += static_cast<double>(m);
      blocks_.push_back(std::move(block));
    }
  }
  for (at::Tensor* x : {&start_loss_, &right_side_, &feature_moment_, &query_moment_}) *x = fp64(*x) / count_;
  const int64_t rank = maps.rank();
  const at::Tensor latent = damped(feature_moment_.slice(1, 0, rank).slice(2, 0, rank), kFeatureDamping);
  feature_moment_.slice(1, 0, rank).slice(2, 0, rank).copy_(latent);
  if (maps.rotary_dim() > 0) {
    const at::Tensor rotary = damped(feature_moment_.slice(1, rank).slice(2, rank), kFeatureDamping);
    feature_moment_.slice(1, rank).slice(2, rank).copy_(rotary);
  }
  query_moment_ = damped(query_moment_, kQueryDamping);
}

at::Tensor LatentQueryProblem::device_maps(const at::Tensor& query) const { return query.transpose(1, 2).to(options_); }

at::Tensor LatentQueryProblem::scores(const Block& block, const at::Tensor& maps) const {
  const at::Tensor mapped = rotate_pairs(at::bmm(block.queries, maps), block.table);
  at::Tensor scores =
      at::matmul(mapped.flatten(0, 1), block.features.transpose(0, 1)).reshape({mapped.size(0), mapped.size(1), -1});
  return block.key_scale.defined() ? scores.mul_(block.key_scale) : scores;
}

at::Tensor LatentQueryProblem::pulled_back(const Block& block, const at::Tensor& gradient) const {
  const at::Tensor pull = block.key_scale.defined() ? gradient * block.key_scale : gradient;
  const at::Tensor on_queries =
      at::matmul(pull.flatten(0, 1), block.features).reshape({pull.size(0), pull.size(1), -1});
  return at::bmm(rotate_pairs(on_queries, block.table, /*inverse=*/true).transpose(1, 2), block.queries);
}

at::Tensor LatentQueryProblem::apply(const at::Tensor& x) const {
  const at::Tensor maps = device_maps(x);
  at::Tensor total;
  for (const Block& block : blocks_)
    accumulate(total, pulled_back(block, softmax_gradient_(scores(block, maps), block.weight, block.mean)));
  return fp64(total) / count_;
}

void LatentQueryProblem::add_moments(const Block& block, const HeadPart& part, int64_t rank) {
  at::Tensor features = block.features;
  if (block.key_scale.defined()) features = features * part.of_queries(block.key_scale).transpose(-2, -1);
  const at::Tensor weighted = features * part.of_queries(block.weight).sum(-2).unsqueeze(-1);
  const at::Tensor mean = at::matmul(part.of_queries(block.mean), features);  // (.., M, R + Dr)
  const at::Tensor c = features.slice(-1, 0, rank), mean_c = mean.slice(-1, 0, rank);
  const at::Tensor moment = part.of_queries(feature_moment_);
  moment.slice(-2, 0, rank)
      .slice(-1, 0, rank)
      .add_(at::matmul(weighted.slice(-1, 0, rank).transpose(-2, -1), c) -
            at::matmul(mean_c.transpose(-2, -1), mean_c));
  const at::Tensor power = ((weighted * features).sum(-2) - mean.square().sum(-2))
                               .slice(-1, rank)
                               .to(at::kDouble)
                               .clamp_min(0)
                               .unflatten(-1, {(features.size(-1) - rank) / 2, 2});
  moment.slice(-2, rank).slice(-1, rank).diagonal(0, -2, -1).add_(
      power.mean(-1, /*keepdim=*/true).expand_as(power).flatten(-2));
}

at::Tensor LatentQueryProblem::loss(const at::Tensor& query) const {
  const at::Tensor x = query - start_;
  return start_loss_ + ((apply(x) - 2 * right_side_) * x).sum({1, 2});
}

at::Tensor LatentQueryProblem::distance(const at::Tensor& query) const {
  const at::Tensor x = query - start_;
  return (at::bmm(at::bmm(feature_moment_, x), query_moment_) * x).sum({1, 2});
}

at::Tensor LatentQueryProblem::solve(int steps, double damping) const {
  return start_ + batched_conjugate_gradient(
                      [&](const at::Tensor& x) {
                        return apply(x) + damping * at::bmm(at::bmm(feature_moment_, x), query_moment_);
                      },
                      [&](const at::Tensor& x) {
                        const at::Tensor left = solve_symmetric(feature_moment_, x);
                        return solve_symmetric(query_moment_, left.transpose(1, 2)).transpose(1, 2);
                      },
                      right_side_, steps);
}

}  // namespace cinch
