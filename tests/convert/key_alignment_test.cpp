#include "convert/solvers/key_alignment.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/convert/random_layer.h"

namespace cinch {
namespace {

at::Tensor query_moments(int64_t heads, int64_t d) {
  const at::Tensor q = at::randn({heads, 3 * d, d}, at::kDouble);
  return at::bmm(q.transpose(1, 2), q) / static_cast<double>(3 * d);
}

/// g heads that are one head times a complex factor per plane (and any map among unrotated dims).
at::Tensor copies(const HeadPlanes& planes, int64_t heads, int64_t samples) {
  const at::Tensor first = at::randn({samples, planes.head_dim}, at::kDouble);
  const auto random = [&] { return at::randn({heads, planes.planes}, at::kDouble); };
  at::Tensor maps = plane_map(at::complex(random(), random()));
  const at::Tensor free = unrotated_dims(planes);
  for (int64_t a = 0; a < heads; ++a) {
    for (int64_t i = 0; i < free.numel(); ++i) {
      for (int64_t j = 0; j < free.numel(); ++j)
        maps[a][free[i].item<int64_t>()][free[j].item<int64_t>()] = at::randn({});
    }
  }
  return at::einsum("aij,nj->nai", {maps, first}).flatten(1, 2);
}

LagFactors some_lags(const HeadPlanes& planes) {
  return lag_factors(planes, at::softmax(at::randn({20}, at::kDouble), 0));
}

TEST(KeyAlignment, TheLossIsTheMeanSquaredErrorOfTheLogits) {
  at::manual_seed(1);
  const HeadPlanes planes = planes_of(6, 4);
  const at::Tensor k = at::randn({11, 3 * 6}, at::kDouble), q = at::randn({3, 5, 6}, at::kDouble);
  const at::Tensor weights = at::softmax(at::randn({4}, at::kDouble), 0);
  const KeyMaps maps{.key = at::randn({6, 18}, at::kDouble), .decoder = at::randn({3, 6, 6}, at::kDouble)};
  const KeyProblem problem{.key = joint_moment(k, 3), .query = at::bmm(q.transpose(1, 2), q) / 5};

  const at::Tensor shared = at::matmul(k, maps.key.t());
  double expected = 0;
  for (int64_t lag = 0; lag < 4; ++lag) {
    const RotationTable table = rotation_table(planes, lag, 1, at::kDouble);
    for (int64_t a = 0; a < 3; ++a) {
      const at::Tensor own = at::matmul(q[a], rotate(k.slice(1, 6 * a, 6 * a + 6), table).t());
      const at::Tensor other = at::matmul(at::matmul(q[a], maps.decoder[a]), rotate(shared, table).t());
      expected += weights[lag].item<double>() * (own - other).square().mean().item<double>();
    }
  }
  EXPECT_NEAR(logit_loss(maps, problem, lag_factors(planes, weights)), expected, 1e-11 * expected);
}

TEST(KeyAlignment, CopiesUpToAFactorPerPlaneLoseNothing) {
  at::manual_seed(2);
  for (const auto& [head_dim, rotary] : {std::pair<int64_t, int64_t>{6, 6}, {6, 2}, {48, 32}, {4, 0}}) {
    const HeadPlanes planes = planes_of(head_dim, rotary);
    const KeyProblem problem{.key = joint_moment(copies(planes, 3, 200), 3), .query = query_moments(3, head_dim)};
    const LagFactors lags = some_lags(planes);
    const KeyMaps start = rank_one_keys(planes, problem);
    const KeyMaps nothing{.key = at::zeros_like(start.key), .decoder = start.decoder};
    const double power = logit_loss(nothing, problem, lags);
    EXPECT_NEAR(start.kept, 1, 1e-12) << head_dim;
    EXPECT_LT(logit_loss(start, problem, lags), 1e-12 * power) << head_dim << " of which rotate " << rotary;
    // An exact start stays exact.
    EXPECT_LT(logit_loss(alternate_keys(start, problem, lags, 3), problem, lags), 1e-12 * power) << head_dim;
  }
}

TEST(KeyAlignment, UncorrelatedHeadsKeepOneShareEach) {
  // Of g heads with nothing in common and the same power, one complex number per plane keeps 1/g.
  for (const int64_t g : {2, 3}) {
    const at::Tensor key = at::eye(g * 6, at::kDouble).reshape({g, 6, g, 6});
    const KeyProblem problem{.key = key, .query = {}};
    EXPECT_NEAR(rank_one_keys(planes_of(6, 6), problem).kept, 1.0 / static_cast<double>(g), 1e-12);
    EXPECT_NEAR(rank_one_keys(planes_of(6, 2), problem).kept, 1.0 / static_cast<double>(g), 1e-12);
  }
}

TEST(KeyAlignment, WithoutRotationTheStartIsTheBestSubspace) {
  at::manual_seed(3);
  const HeadPlanes planes = planes_of(6, 0);
  const at::Tensor samples = at::randn({40, 18}, at::kDouble) * at::rand({18}, at::kDouble);
  const KeyProblem problem{.key = joint_moment(samples, 3), .query = query_moments(3, 6)};
  const at::Tensor s = at::linalg_svdvals(samples).square();
  const double best = (s.slice(0, 0, 6).sum() / s.sum()).item<double>();
  EXPECT_NEAR(rank_one_keys(planes, problem).kept, best, 1e-12);
}

TEST(KeyAlignment, TheSharedKeyHasTheMeanPowerOfItsSources) {
  at::manual_seed(4);
  for (const int64_t rotary : {6, 2, 0}) {
    const HeadPlanes planes = planes_of(6, rotary);
    const at::Tensor samples = at::randn({40, 18}, at::kDouble) * at::rand({18}, at::kDouble);
    const KeyProblem problem{.key = joint_moment(samples, 3), .query = query_moments(3, 6)};
    const double wanted = samples.square().sum().item<double>() / 40 / 3;
    const KeyMaps start = rank_one_keys(planes, problem);
    const KeyMaps refined = alternate_keys(start, problem, some_lags(planes), 2);
    EXPECT_NEAR(at::matmul(samples, start.key.t()).square().sum().item<double>() / 40, wanted, 1e-10);
    EXPECT_NEAR(at::matmul(samples, refined.key.t()).square().sum().item<double>() / 40, wanted, 1e-10);
  }
}

TEST(KeyAlignment, EveryIterationLowersTheLoss) {
  at::manual_seed(5);
  for (const auto& [head_dim, rotary] : {std::pair<int64_t, int64_t>{6, 6}, {6, 2}, {48, 48}}) {
    const HeadPlanes planes = planes_of(head_dim, rotary);
    const at::Tensor samples =
        at::matmul(at::randn({400, head_dim}, at::kDouble), at::randn({head_dim, 3 * head_dim}, at::kDouble)) +
        0.5 * at::randn({400, 3 * head_dim}, at::kDouble);
    const KeyProblem problem{.key = joint_moment(samples, 3), .query = query_moments(3, head_dim)};
    const LagFactors lags = some_lags(planes);
    const KeyMaps start = rank_one_keys(planes, problem);
    const double before = logit_loss(start, problem, lags);
    double last = before;
    for (int iterations = 0; iterations < 5; ++iterations) {
      const double now = logit_loss(alternate_keys(start, problem, lags, iterations), problem, lags);
      EXPECT_LT(now, last) << head_dim << " after " << iterations;
      last = now;
    }
    EXPECT_LT(last, 0.95 * before) << head_dim;
  }
}

TEST(KeyAlignment, TheLastDecoderIsTheLeastSquaresOne) {
  at::manual_seed(6);
  const HeadPlanes planes = planes_of(6, 6);
  const KeyProblem problem{.key = joint_moment(at::randn({60, 18}, at::kDouble), 3), .query = query_moments(3, 6)};
  const LagFactors lags = some_lags(planes);
  const KeyMaps maps = alternate_keys(rank_one_keys(planes, problem), problem, lags, 30);
  // Given the key, no change of a decoder helps beyond what the damping holds back.
  const double settled = logit_loss(maps, problem, lags);
  for (int i = 0; i < 10; ++i) {
    KeyMaps moved = maps;
    moved.decoder = maps.decoder + 0.05 * at::randn_like(maps.decoder);
    EXPECT_GT(logit_loss(moved, problem, lags), settled);
  }
}

TEST(KeyAlignment, HeadsWithoutEnergyDoNoHarm) {
  const HeadPlanes planes = planes_of(6, 2);
  const KeyProblem problem{.key = at::zeros({2, 6, 2, 6}, at::kDouble), .query = query_moments(2, 6)};
  const KeyMaps start = rank_one_keys(planes, problem);
  EXPECT_EQ(start.kept, 1.0);
  const KeyMaps maps = alternate_keys(start, problem, some_lags(planes), 2);
  EXPECT_TRUE(at::isfinite(maps.key).all().item<bool>());
  EXPECT_TRUE(at::isfinite(maps.decoder).all().item<bool>());
}

}  // namespace
}  // namespace cinch
