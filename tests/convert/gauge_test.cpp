#include "convert/solvers/gauge.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/convert/random_layer.h"

namespace cinch {
namespace {

struct Shape {
  int64_t heads, kv_heads, head_dim, rotary_dim;
};

class GaugeTest : public ::testing::TestWithParam<Shape> {
 protected:
  void SetUp() override {
    const auto& [heads, kv_heads, head_dim, rotary_dim] = GetParam();
    layer_ = {
        .heads = heads, .kv_heads = kv_heads, .head_dim = head_dim, .hidden = head_dim + 14, .rotary_dim = rotary_dim};
    problem_ = layer_.problem();
    source_ = source_heads(problem_);
    source_moments_ = head_moments(HeadStream(problem_, source_));
    path_.gain = 0.5 + at::rand({layer_.hidden}, at::kDouble);
    canonical_ = source_;
    moments_ = source_moments_;
    to_canonical(canonical_, moments_, path_);
  }

  /// q_h^T R_lag k of every query head, as (H, C, C).
  at::Tensor scores(const at::Tensor& q, const at::Tensor& k, int64_t lag) const {
    const RotationTable table = rotation_table(source_.planes, lag, 1, at::kDouble);
    const at::Tensor turned = rotate(k.transpose(1, 2), table);  // (K, C, D)
    return at::matmul(q.transpose(1, 2), turned.transpose(1, 2).repeat_interleave(q.size(0) / k.size(0), 0));
  }
  at::Tensor outputs(const at::Tensor& o, const at::Tensor& v) const {
    return at::bmm(o, v.repeat_interleave(o.size(0) / v.size(0), 0));
  }

  RandomLayer layer_;
  LayerProblem problem_;
  SourceHeads source_, canonical_;
  HeadMoments source_moments_, moments_;
  ResidualPath path_;
};

TEST_P(GaugeTest, TheFunctionStays) {
  for (const int64_t lag : {0, 1, 9}) {
    EXPECT_LT(largest_difference(scores(canonical_.q, canonical_.k, lag), scores(source_.q, source_.k, lag)), 1e-11);
  }
  const at::Tensor gain = path_.gain.reshape({1, -1, 1});
  EXPECT_LT(largest_difference(outputs(canonical_.o, canonical_.v), outputs(source_.o * gain, source_.v)), 1e-11);
}

TEST_P(GaugeTest, MomentsAreThoseOfTheNewBasis) {
  const HeadMoments again = head_moments(HeadStream(problem_, canonical_));
  EXPECT_LT(largest_difference(again.key, moments_.key), 1e-10);
  EXPECT_LT(largest_difference(again.query, moments_.query), 1e-10);
  EXPECT_LT(largest_difference(again.value, moments_.value), 1e-10);
}

TEST_P(GaugeTest, QueriesHaveUnitPowerAndValuesTheirEffectAsLength) {
  const int64_t k = layer_.kv_heads, d = layer_.head_dim, half = d / 2;
  const at::Tensor query = moments_.query.reshape({k, layer_.rep(), d, d}).sum(1);
  const at::Tensor power = query.diagonal(0, 1, 2);
  const int64_t rotated = source_.planes.rotated;
  const at::Tensor planes = (power.slice(1, 0, half) + power.slice(1, half, d)).slice(1, 0, rotated);
  EXPECT_TRUE(at::allclose(planes, at::ones_like(planes), 0, 1e-10));
  const at::Tensor free = unrotated_dims(source_.planes);
  const at::Tensor block = query.index_select(1, free).index_select(2, free);
  if (free.numel() > 0) {
    EXPECT_LT(largest_difference(block, at::eye(free.numel(), at::kDouble).expand_as(block)), 1e-9);
  }
  const at::Tensor metric = at::bmm(canonical_.o.transpose(1, 2), canonical_.o).reshape({k, layer_.rep(), d, d}).sum(1);
  EXPECT_LT(largest_difference(metric, at::eye(d, at::kDouble).expand_as(metric)), 1e-9);
}

TEST_P(GaugeTest, SharedHeadsGetTheMeanPowerOfTheirSources) {
  const int64_t k = layer_.kv_heads, d = layer_.head_dim, h = layer_.heads;
  at::manual_seed(8);
  const auto random = [](std::vector<int64_t> shape) { return at::randn(shape, at::kDouble); };
  MergedHeads merged{.key = random({1, d, k, d}),
                     .query = random({h, d, d}),
                     .value = random({1, d, k, d}),
                     .o = random({h, layer_.hidden, d})};
  const MergedHeads before = merged;
  to_natural_scale(merged, source_moments_, moments_, path_, /*qk_norm=*/false);

  const auto power = [&](const at::Tensor& map, const at::Tensor& moment) {  // (D)
    const at::Tensor b = map[0].reshape({d, k * d});
    return at::matmul(at::matmul(b, moment.reshape({k * d, k * d})), b.t()).diagonal();
  };
  const auto planes = [&](const at::Tensor& dims) { return dims.slice(-1, 0, d / 2) + dims.slice(-1, d / 2, d); };
  const at::Tensor key = planes(source_moments_.key.reshape({k * d, k * d}).diagonal().reshape({k, d})).mean(0);
  EXPECT_LT(largest_difference(planes(power(merged.key, moments_.key)), key), 1e-9);
  const double value = source_moments_.value.reshape({k * d, k * d}).trace().item<double>() / static_cast<double>(k);
  EXPECT_NEAR(power(merged.value, moments_.value).sum().item<double>(), value, 1e-9 * value);

  // Only scales have moved between a map and its partner, and the gain is off the output again.
  const auto pair = [&](const MergedHeads& m) {
    return at::bmm(m.query.transpose(1, 2), m.key.flatten(2, 3).expand({h, d, k * d}));
  };
  EXPECT_LT(largest_difference(pair(merged), pair(before)), 1e-10);
  const auto out = [&](const MergedHeads& m) { return at::bmm(m.o, m.value.flatten(2, 3).expand({h, d, k * d})); };
  EXPECT_LT(largest_difference(out(merged) * path_.gain.reshape({1, -1, 1}), out(before)), 1e-10);
}

std::string name_of(const ::testing::TestParamInfo<Shape>& test) {
  const Shape& s = test.param;
  return fmt::format("h{}_kv{}_d{}_r{}", s.heads, s.kv_heads, s.head_dim, s.rotary_dim);
}

INSTANTIATE_TEST_SUITE_P(Shapes, GaugeTest,
                         ::testing::Values(Shape{6, 3, 8, 8}, Shape{9, 3, 6, 4}, Shape{4, 4, 6, 0},
                                           Shape{4, 2, 48, 32}),
                         name_of);

TEST(Gauge, NormedQueriesAndKeysStay) {
  const RandomLayer layer{.qk_norm = true};
  const LayerProblem p = layer.problem();
  const SourceHeads source = source_heads(p);
  SourceHeads heads = source;
  HeadMoments moments = head_moments(HeadStream(p, heads));
  const at::Tensor key = moments.key.clone();
  to_canonical(heads, moments, residual_path(p));
  EXPECT_EQ(largest_difference(heads.q, source.q), 0);
  EXPECT_EQ(largest_difference(heads.k, source.k), 0);
  EXPECT_EQ(largest_difference(moments.key, key), 0);
  EXPECT_GT(largest_difference(heads.v, source.v), 0.01);
}

TEST(Gauge, AHeadThatDoesNothingDoesNoHarm) {
  const RandomLayer layer;
  LayerProblem p = layer.problem();
  p.weights.q_proj.slice(0, 0, 16).zero_();  // both query heads of the first KV head
  p.weights.o_proj.slice(1, 0, 16).zero_();
  SourceHeads heads = source_heads(p);
  HeadMoments moments = head_moments(HeadStream(p, heads));
  to_canonical(heads, moments, residual_path(p));
  for (const at::Tensor& t : {heads.q, heads.k, heads.v, heads.o, moments.key, moments.query, moments.value}) {
    EXPECT_TRUE(at::isfinite(t).all().item<bool>());
  }
  EXPECT_EQ(heads.q.slice(0, 0, 2).abs().max().item<double>(), 0);
}

}  // namespace
}  // namespace cinch
