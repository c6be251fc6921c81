#include "convert/solvers/output_refit.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/convert/random_layer.h"

namespace cinch {
namespace {

/// Merged weights whose heads are not the source's: the mean of all KV heads.
GroupedQueryWeights mean_heads(const RandomLayer& layer, const LayerProblem& p) {
  GroupedQueryWeights w = p.weights;
  const auto mean = [&](const at::Tensor& rows) {
    return rows.defined() ? rows.unflatten(0, {layer.kv_heads, layer.head_dim}).mean(0) : rows;
  };
  w.k_proj = mean(w.k_proj);
  w.v_proj = mean(w.v_proj);
  w.k_bias = mean(w.k_bias);
  w.v_bias = mean(w.v_bias);
  return w;
}

/// The least-squares problem of the refit written out over tokens: features (N, n), goals (N, E) and weights (N).
struct Tokens {
  at::Tensor features, goal, weight;
};
Tokens tokens(const LayerProblem& p, const GroupedQueryWeights& merged, const std::vector<int64_t>& windows,
              bool bias) {
  const GroupedQueryAttention original(p.source, p.weights), converted(p.target, merged);
  const at::Tensor index = at::tensor(windows, at::kLong);
  const at::Tensor h = p.teacher.index_select(0, index), student = p.student.index_select(0, index);
  Tokens t;
  t.features = converted.head_outputs(student, 0, 0, nullptr).flatten(0, 1);
  if (bias) t.features = at::cat({t.features, at::ones({t.features.size(0), 1}, at::kDouble)}, 1);
  t.goal = (h + original.forward(h, 0, 0, nullptr) - student).flatten(0, 1);
  t.weight = h.flatten(0, 1).square().sum(1).reciprocal();
  return t;
}

/// W (E, n) minimising sum w |goal - W f|^2 + lambda * power per KV head * |W - W0|^2, the last column of a bias free.
at::Tensor ridge(const Tokens& t, const at::Tensor& start, double lambda, int64_t kv_heads, bool bias) {
  const int64_t n = t.features.size(1), free = bias ? 1 : 0, per_head = (n - free) / kv_heads;
  const at::Tensor weighted = t.features * t.weight.unsqueeze(1);
  const at::Tensor gram = at::matmul(weighted.t(), t.features);
  at::Tensor penalty = at::zeros({n}, at::kDouble);
  for (int64_t k = 0; k < kv_heads; ++k) {
    double power = 0;
    for (int64_t i = k * per_head; i < (k + 1) * per_head; ++i) power += gram[i][i].item<double>();
    for (int64_t i = k * per_head; i < (k + 1) * per_head; ++i)
      penalty[i] = lambda * power / static_cast<double>(per_head);
  }
  const at::Tensor right = at::matmul(weighted.t(), t.goal) + penalty.unsqueeze(1) * start.t();
  return at::linalg_solve(gram + at::diag(penalty), right, /*left=*/true).t();
}

double loss(const Tokens& t, const at::Tensor& w) {
  const at::Tensor error = t.goal - at::matmul(t.features, w.t());
  return ((error.square().sum(1) * t.weight).sum() / (t.goal.square().sum(1) * t.weight).sum()).item<double>();
}

at::Tensor with_bias(const GroupedQueryWeights& w) {
  return w.o_bias.defined() ? at::cat({w.o_proj, w.o_bias.unsqueeze(1)}, 1) : w.o_proj;
}

struct Case {
  RandomLayer layer;
  bool validation;
};

class OutputRefitTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    problem_ = layer().problem();
    // A drift that a refit can partly undo.
    const int64_t e = layer().hidden;
    problem_.student = problem_.teacher + 0.1 * at::matmul(problem_.teacher, at::randn({e, e}, at::kDouble));
    problem_.windows = {.fit = {0, 1, 2}, .validation = {}, .held_out = {4}};
    if (GetParam().validation) problem_.windows.validation = {3};
    merged_ = mean_heads(layer(), problem_);
  }
  const RandomLayer& layer() const { return GetParam().layer; }
  bool bias() const { return layer().output_bias; }
  Tokens fit() const { return tokens(problem_, merged_, {0, 1, 2}, bias()); }
  Tokens judged() const { return GetParam().validation ? tokens(problem_, merged_, {3}, bias()) : fit(); }
  Tokens all() const { return GetParam().validation ? tokens(problem_, merged_, {0, 1, 2, 3}, bias()) : fit(); }

  LayerProblem problem_;
  GroupedQueryWeights merged_;
};

TEST_P(OutputRefitTest, EqualsTheNormalEquations) {
  const at::Tensor start = with_bias(merged_);
  const OutputRefit refit = refit_output(problem_, merged_, {10.0});
  ASSERT_EQ(refit.lambda, 10.0);
  const at::Tensor expected = ridge(all(), start, 10.0, 1, bias());
  const int64_t n = merged_.o_proj.size(1);
  EXPECT_LT(largest_difference(refit.o_proj, expected.slice(1, 0, n)), 1e-9);
  ASSERT_EQ(refit.o_bias.defined(), bias());
  if (bias()) {
    EXPECT_LT(largest_difference(refit.o_bias, expected.select(1, n)), 1e-9);
  }
  // The loss is that of the windows that judged, before they joined the fit.
  EXPECT_NEAR(refit.loss, loss(judged(), ridge(fit(), start, 10.0, 1, bias())), 1e-9);
}

TEST_P(OutputRefitTest, TheBestLambdaIsTaken) {
  const at::Tensor start = with_bias(merged_);
  const std::vector<double> lambdas{100, 3, 0.1, 0.003, 1e-6};
  double best = loss(judged(), start), chosen = 0;
  for (const double lambda : lambdas) {
    const double now = loss(judged(), ridge(fit(), start, lambda, 1, bias()));
    if (now < best) {
      best = now;
      chosen = lambda;
    }
  }
  const OutputRefit refit = refit_output(problem_, merged_, lambdas);
  EXPECT_EQ(refit.lambda, chosen);
  EXPECT_NEAR(refit.loss, best, 1e-9);
  if (!GetParam().validation) {
    EXPECT_EQ(chosen, 1e-6) << "on the fitted windows less damping is always better";
  }
}

INSTANTIATE_TEST_SUITE_P(
    Layers, OutputRefitTest,
    ::testing::Values(
        Case{{.windows = 5}, false}, Case{{.windows = 5, .tokens = 40}, true},
        Case{{.heads = 9, .kv_heads = 3, .head_dim = 6, .windows = 5, .tokens = 40, .bias = true, .output_bias = true},
             true},
        Case{{.heads = 2, .kv_heads = 2, .head_dim = 48, .windows = 5, .tokens = 40}, true}),
    [](const auto& test) { return "case" + std::to_string(test.index); });

TEST(OutputRefit, NothingToCorrect) {
  RandomLayer layer{.heads = 9, .kv_heads = 3, .head_dim = 6, .target = 3};
  const LayerProblem p = layer.problem();
  const OutputRefit refit = refit_output(p, p.weights, {1e-2, 1e-4});
  EXPECT_EQ(refit.lambda, 0);
  EXPECT_LT(refit.loss, 1e-25);
  EXPECT_EQ(largest_difference(refit.o_proj, p.weights.o_proj), 0);
}

TEST(OutputRefit, ThePowerOfEachKvHeadIsItsOwn) {
  // Two KV heads of very different scale: each is damped in proportion to its own power, so that scaling a head's
  // values up and its output down changes nothing.
  RandomLayer layer{.heads = 4, .kv_heads = 2, .head_dim = 6, .target = 2};
  LayerProblem p = layer.problem();
  p.student = p.teacher + 0.3 * at::randn_like(p.teacher);
  GroupedQueryWeights scaled = p.weights;
  scaled.v_proj = p.weights.v_proj.clone();
  scaled.o_proj = p.weights.o_proj.clone();
  scaled.v_proj.slice(0, 0, 6).mul_(1000);
  scaled.o_proj.slice(1, 0, 12).div_(1000);
  const OutputRefit plain = refit_output(p, p.weights, {0.1}), other = refit_output(p, scaled, {0.1});
  EXPECT_EQ(plain.lambda, 0.1);
  EXPECT_NEAR(plain.loss, other.loss, 1e-10);
  EXPECT_LT(largest_difference(plain.o_proj.slice(1, 0, 12), 1000 * other.o_proj.slice(1, 0, 12)), 1e-8);
}

TEST(OutputRefit, TheErrorOfTheAttentionOutput) {
  RandomLayer layer{.target = 3};
  const LayerProblem p = layer.problem();
  GroupedQueryWeights w = p.weights;
  EXPECT_EQ(attention_output_error(p, w, {0, 1}), 0);
  w.o_proj = p.weights.o_proj * 0.75;
  EXPECT_NEAR(attention_output_error(p, w, {0, 1}), 0.25, 1e-12);
  w.o_proj = at::zeros_like(p.weights.o_proj);
  EXPECT_NEAR(attention_output_error(p, w, {2}), 1, 1e-12);
  EXPECT_EQ(attention_output_error(p, w, {}), 0);
}

}  // namespace
}  // namespace cinch
