#include "convert/solvers/moments.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/convert/random_layer.h"

namespace cinch {
namespace {

/// Mean over tokens of x x^T for x (N, n).
at::Tensor second_moment(const at::Tensor& x) { return at::matmul(x.t(), x) / static_cast<double>(x.size(0)); }

TEST(Moments, AreMeansOverTheWindowsToFitOn) {
  const RandomLayer layer{.heads = 9, .kv_heads = 3, .head_dim = 6, .rotary_dim = 4, .bias = true};
  LayerProblem p = layer.problem();
  p.windows = {.fit = {0, 2}, .validation = {1}, .held_out = {3}};
  const SourceHeads heads = source_heads(p);
  const HeadMoments moments = head_moments(HeadStream(p, heads));

  const at::Tensor x = p.teacher.index_select(0, at::tensor({0, 2}, at::kLong)).flatten(0, 1);
  const auto projected = [&](const at::Tensor& weight, const at::Tensor& bias, bool internal) {
    const at::Tensor y = (at::matmul(x, weight.t()) + bias).reshape({x.size(0), -1, 6});
    return internal ? y.index_select(2, heads.planes.order) : y;  // values keep the model's coordinates
  };
  const at::Tensor k = projected(p.weights.k_proj, p.weights.k_bias, true);
  const at::Tensor v = projected(p.weights.v_proj, p.weights.v_bias, false);
  const at::Tensor q = projected(p.weights.q_proj, p.weights.q_bias, true);
  EXPECT_LT(largest_difference(moments.key, second_moment(k.flatten(1, 2)).reshape({3, 6, 3, 6})), 1e-12);
  EXPECT_LT(largest_difference(moments.value, second_moment(v.flatten(1, 2)).reshape({3, 6, 3, 6})), 1e-12);
  for (int64_t h = 0; h < 9; ++h) {
    EXPECT_LT(largest_difference(moments.query[h], second_moment(q.select(1, h))), 1e-12) << h;
  }
}

TEST(Moments, KeysAreTakenAfterTheirNorm) {
  const RandomLayer layer{.qk_norm = true};
  const LayerProblem p = layer.problem();
  const HeadMoments moments = head_moments(HeadStream(p, source_heads(p)));
  // RMSNorm makes the mean square of a head's dims one; what is left is the gain.
  const at::Tensor own = moments.key.diagonal(0, 0, 2).permute({2, 0, 1});
  for (int64_t k = 0; k < 3; ++k) {
    const at::Tensor plain = own[k].diagonal() / p.weights.k_norm.square();
    EXPECT_NEAR(plain.mean().item<double>(), 1, 1e-5) << k;
  }
}

TEST(Moments, LagsOfUniformAttention) {
  const RandomLayer layer{.tokens = 10};
  LayerProblem p = layer.problem();
  p.weights.q_proj.zero_();
  const SourceHeads heads = source_heads(p);
  const at::Tensor mass = measured_lags(HeadStream(p, heads), 2);
  // Position t looks at each of its t + 1 keys alike.
  for (int64_t lag = 0; lag < 10; ++lag) {
    double expected = 0;
    for (int64_t t = lag; t < 10; ++t) expected += 0.1 / static_cast<double>(t + 1);
    EXPECT_NEAR(mass[lag].item<double>(), expected, 1e-12) << lag;
  }
}

TEST(Moments, ASlidingWindowLimitsTheLags) {
  const RandomLayer layer{.tokens = 10, .sliding_window = 3};
  const LayerProblem p = layer.problem();
  const SourceHeads heads = source_heads(p);
  const at::Tensor mass = measured_lags(HeadStream(p, heads), 100);
  EXPECT_NEAR(mass.sum().item<double>(), 1, 1e-12);
  EXPECT_GT(mass[2].item<double>(), 0);
  EXPECT_EQ(mass.slice(0, 3).abs().max().item<double>(), 0);
}

TEST(Moments, LagWeightsMixWhatWasSeenWithATail) {
  const at::Tensor seen = at::tensor({0.5, 0.5}, at::kDouble);
  // 1 + 1/2 + 1/3 + 1/4 = 25/12
  const at::Tensor expected =
      at::tensor({0.3 + 0.4 * 12 / 25, 0.3 + 0.4 * 6 / 25, 0.4 * 4 / 25, 0.4 * 3 / 25}, at::kDouble);
  EXPECT_LT(largest_difference(lag_weights(seen, 0.4, 4, 0), expected), 1e-15);
  EXPECT_EQ(lag_weights(seen, 0.4, 1, 0).size(0), 2) << "no shorter than what was measured";
  const at::Tensor near = lag_weights(at::tensor({0.2, 0.3, 0.5}, at::kDouble), 0.0, 8, 2);
  EXPECT_LT(largest_difference(near, at::tensor({0.4, 0.6}, at::kDouble)), 1e-15);
  EXPECT_NEAR(lag_weights(seen, 0.1, 1000, 0).sum().item<double>(), 1, 1e-12);
}

}  // namespace
}  // namespace cinch
