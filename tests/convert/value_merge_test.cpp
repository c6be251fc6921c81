#include "convert/solvers/value_merge.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/convert/random_layer.h"

namespace cinch {
namespace {

/// A layer with random shared queries and keys, and what value_moments is about, token by token.
struct Merge {
  explicit Merge(const RandomLayer& shape) : layer(shape), problem(shape.problem()), heads(source_heads(problem)) {
    const int64_t d = shape.head_dim, h = shape.heads, groups = shape.target, g = shape.kv_heads / groups;
    const auto random = [](std::vector<int64_t> size) { return at::randn(size, at::kDouble) * 0.4; };
    merged = {.key = random({groups, d, g, d}),
              .query = random({h, d, d}),
              .value = random({groups, d, g, d}),
              .o = random({h, shape.hidden, d})};
  }
  ValueMoments moments() const {
    return value_moments(problem, HeadStream(problem, heads), residual_path(problem), merged);
  }

  /// Attention-averaged values of head h's group (N, gD), each token times the root of its weight.
  at::Tensor averaged(int64_t h) const {
    const int64_t d = layer.head_dim, g = layer.kv_heads / layer.target, group = h / (layer.heads / layer.target);
    const RotationTable table = rotation_table(heads.planes, 0, layer.tokens, at::kDouble);
    std::vector<at::Tensor> result;
    for (int64_t w = 0; w < layer.windows; ++w) {
      const at::Tensor x = problem.teacher[w];
      std::vector<at::Tensor> keys, values;
      for (int64_t a = group * g; a < (group + 1) * g; ++a) {
        keys.push_back(at::matmul(x, heads.k[a].t()));
        values.push_back(at::matmul(x, heads.v[a].t()));
      }
      const at::Tensor key = at::matmul(at::cat(keys, 1), merged.key[group].reshape({d, g * d}).t());
      const at::Tensor q = at::matmul(at::matmul(x, heads.q[h].t()), merged.query[h].t());
      const at::Tensor logits = at::matmul(rotate(q, table), rotate(key, table).t()) * problem.source.scale;
      const at::Tensor hidden = at::ones_like(logits).triu(1).to(at::kBool);
      const at::Tensor p = at::softmax(logits.masked_fill(hidden, -1e300), 1);
      result.push_back(at::matmul(p, at::cat(values, 1)) / x.square().sum(1, true).sqrt());
    }
    return at::cat(result, 0);
  }
  /// The original attention output (N, E) with the same weights.
  at::Tensor goal() const {
    const at::Tensor y = GroupedQueryAttention(problem.source, problem.weights).forward(problem.teacher, 0, 0, nullptr);
    return (y / problem.teacher.square().sum(-1, true).sqrt()).flatten(0, 1);
  }
  /// value_loss from its definition.
  double loss(const MergedHeads& m) const {
    at::Tensor error = goal();
    const double power = error.square().sum().item<double>();
    for (int64_t h = 0; h < layer.heads; ++h) {
      const at::Tensor map = m.value[h / (layer.heads / layer.target)].flatten(1, 2);
      error = error - at::matmul(at::matmul(averaged(h), map.t()), m.o[h].t());
    }
    return error.square().sum().item<double>() / power;
  }

  RandomLayer layer;
  LayerProblem problem;
  SourceHeads heads;
  MergedHeads merged;
};

class ValueMergeTest : public ::testing::TestWithParam<RandomLayer> {};

TEST_P(ValueMergeTest, MomentsAreSumsOverTokens) {
  const Merge merge(GetParam());
  const ValueMoments moments = merge.moments();
  ASSERT_TRUE(moments.full());
  const at::Tensor goal = merge.goal();
  EXPECT_NEAR(moments.power, goal.square().sum().item<double>(), 1e-10 * moments.power);
  for (int64_t a = 0; a < merge.layer.heads; ++a) {
    const at::Tensor z = merge.averaged(a);
    EXPECT_LT(largest_difference(moments.cross[a], at::matmul(goal.t(), z)), 1e-9) << a;
    const at::Tensor other = merge.averaged((a + 1) % merge.layer.heads);
    EXPECT_LT(largest_difference(moments.gram[a].select(1, (a + 1) % merge.layer.heads), at::matmul(z.t(), other)),
              1e-9);
  }
  EXPECT_NEAR(value_loss(moments, merge.merged), merge.loss(merge.merged), 1e-9 * merge.loss(merge.merged));
}

TEST_P(ValueMergeTest, TheStartIsTheBestSubspaceOfEachGroup) {
  Merge merge(GetParam());
  const ValueMoments moments = merge.moments();
  const double kept = start_values(moments, merge.heads.o, merge.merged);
  const int64_t d = merge.layer.head_dim, groups = merge.layer.target, per_group = merge.layer.heads / groups;
  const int64_t g = merge.layer.kv_heads / groups;
  double best = 0, total = 0;
  for (int64_t j = 0; j < groups; ++j) {
    std::vector<at::Tensor> z;
    for (int64_t h = j * per_group; h < (j + 1) * per_group; ++h) z.push_back(merge.averaged(h));
    const at::Tensor s = at::linalg_svdvals(at::cat(z, 0)).square();
    best += s.slice(0, 0, d).sum().item<double>();
    total += s.sum().item<double>();
    const at::Tensor basis = merge.merged.value[j].flatten(1, 2);
    EXPECT_LT(largest_difference(at::matmul(basis, basis.t()), at::eye(d, at::kDouble)), 1e-10);
    // Each head's output reads its own source head back from the shared value.
    for (int64_t h = j * per_group; h < (j + 1) * per_group; ++h) {
      const int64_t own = h / merge.layer.rep() - j * g;
      const at::Tensor decoder = merge.merged.value[j].select(1, own).t();
      EXPECT_LT(largest_difference(merge.merged.o[h], at::matmul(merge.heads.o[h], decoder)), 1e-10) << h;
    }
  }
  EXPECT_NEAR(kept, best / total, 1e-10);
}

TEST_P(ValueMergeTest, EveryRoundLowersTheLoss) {
  Merge merge(GetParam());
  const ValueMoments moments = merge.moments();
  start_values(moments, merge.heads.o, merge.merged);
  double last = value_loss(moments, merge.merged);
  for (int round = 0; round < 4; ++round) {
    alternate_values(moments, {.rounds = 1}, merge.merged);
    const double now = value_loss(moments, merge.merged);
    EXPECT_LT(now, last) << round;
    last = now;
  }
}

TEST_P(ValueMergeTest, TheOutputIsRefittedByRidge) {
  Merge merge(GetParam());
  const ValueMoments moments = merge.moments();
  const MergedHeads before = merge.merged;
  alternate_values(moments, {.rounds = 1, .steps = 0, .output_ridge = 0.2}, merge.merged);
  EXPECT_EQ(largest_difference(merge.merged.value, before.value), 0) << "no steps on the values were asked for";
  // min_W |goal - W f|^2 + 0.2 * (mean power of f) |W - W0|^2 over features f of all heads side by side.
  std::vector<at::Tensor> features, start;
  for (int64_t h = 0; h < merge.layer.heads; ++h) {
    const at::Tensor map = before.value[h / (merge.layer.heads / merge.layer.target)].flatten(1, 2);
    features.push_back(at::matmul(merge.averaged(h), map.t()));
    start.push_back(before.o[h]);
  }
  const at::Tensor f = at::cat(features, 1), w0 = at::cat(start, 1), gram = at::matmul(f.t(), f);
  const at::Tensor penalty = 0.2 * gram.diagonal().mean() * at::eye(f.size(1), at::kDouble);
  const at::Tensor right = at::matmul(f.t(), merge.goal()) + at::matmul(penalty, w0.t());
  const at::Tensor expected = at::linalg_solve(gram + penalty, right, /*left=*/true).t();
  const at::Tensor found = merge.merged.o.transpose(0, 1).flatten(1, 2);
  EXPECT_LT(largest_difference(found, expected), 1e-8);
}

TEST_P(ValueMergeTest, ValueStepsReachTheBottomOfTheirQuadratic) {
  Merge merge(GetParam());
  const ValueMoments moments = merge.moments();
  start_values(moments, merge.heads.o, merge.merged);
  // A huge ridge holds W_O where it is: what moves is the value map.
  const ValueRefitOptions values_only{.rounds = 1, .steps = 400, .output_ridge = 1e12, .value_damping = 1e-9};
  const double before = value_loss(moments, merge.merged);
  alternate_values(moments, values_only, merge.merged);
  const double settled = value_loss(moments, merge.merged);
  EXPECT_LT(settled, before);
  for (int i = 0; i < 5; ++i) {
    MergedHeads moved = merge.merged;
    moved.value = moved.value + 1e-3 * at::randn_like(moved.value);
    EXPECT_GT(value_loss(moments, moved), settled);
  }
}

INSTANTIATE_TEST_SUITE_P(Layers, ValueMergeTest,
                         ::testing::Values(RandomLayer{.heads = 4, .kv_heads = 4, .head_dim = 6, .target = 2},
                                           RandomLayer{.heads = 9, .kv_heads = 3, .head_dim = 6, .target = 1},
                                           RandomLayer{.heads = 2, .kv_heads = 2, .head_dim = 48, .windows = 6}),
                         [](const auto& test) { return "case" + std::to_string(test.index); });

TEST(ValueMerge, HeadsThatAreNotMergedLoseNothing) {
  Merge merge({.heads = 6, .kv_heads = 3, .head_dim = 6, .target = 3});
  const at::Tensor identity = at::eye(6, at::kDouble);
  merge.merged.key = identity.reshape({1, 6, 1, 6}).expand({3, 6, 1, 6}).contiguous();
  merge.merged.query = identity.expand({6, 6, 6}).contiguous();
  const ValueMoments moments = merge.moments();
  EXPECT_NEAR(start_values(moments, merge.heads.o, merge.merged), 1, 1e-12);
  EXPECT_LT(value_loss(moments, merge.merged), 1e-12);
  alternate_values(moments, {}, merge.merged);
  EXPECT_LT(value_loss(moments, merge.merged), 1e-12);
}

TEST(ValueMerge, ManyHeadsKeepOnlyTheirOwnBlocks) {
  // 36 heads * 6 sources * 32 dims = 6912 features: too many for a joint Gram matrix.
  Merge merge({.heads = 36, .kv_heads = 6, .head_dim = 32, .hidden = 24, .target = 1, .windows = 1, .tokens = 8});
  const ValueMoments moments = merge.moments();
  EXPECT_FALSE(moments.full());
  ASSERT_EQ(moments.gram.sizes(), (std::vector<int64_t>{36, 192, 192}));
  for (const int64_t h : {0, 17, 35}) {
    const at::Tensor z = merge.averaged(h);
    EXPECT_LT(largest_difference(moments.gram[h], at::matmul(z.t(), z)), 1e-9) << h;
  }
  const double kept = start_values(moments, merge.heads.o, merge.merged);
  EXPECT_GT(kept, 0);
  EXPECT_LE(kept, 1 + 1e-12);
}

}  // namespace
}  // namespace cinch
