#include "convert/solvers/conjugate_gradient.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/convert/random_layer.h"

namespace cinch {
namespace {

at::Tensor same(const at::Tensor& x) { return x; }

MatrixOperator times(const at::Tensor& a) {
  return [a](const at::Tensor& x) { return at::matmul(a, x); };
}

at::Tensor random_spd(std::vector<int64_t> shape) {
  const at::Tensor a = at::randn(shape, at::kDouble);
  return at::matmul(a, a.transpose(-2, -1)) + at::eye(shape.back(), at::kDouble);
}

TEST(ConjugateGradient, ASystemOfTwoByHand) {
  const at::Tensor a = at::tensor({4.0, 1.0, 1.0, 3.0}, at::kDouble).reshape({2, 2});
  const at::Tensor b = at::tensor({1.0, 2.0}, at::kDouble).reshape({2, 1});
  // First step: along b by b.b / b.Ab = 5 / 20. The second ends at the solution (1/11, 7/11).
  EXPECT_LT(largest_difference(conjugate_gradient(times(a), same, b, 1), b / 4), 1e-15);
  EXPECT_LT(largest_difference(conjugate_gradient(times(a), same, b, 2) * 11,
                               at::tensor({1.0, 7.0}, at::kDouble).reshape({2, 1})),
            1e-13);
  EXPECT_EQ(conjugate_gradient(times(a), same, b, 0).abs().max().item<double>(), 0);
}

TEST(ConjugateGradient, EveryStepLowersTheQuadratic) {
  at::manual_seed(1);
  const at::Tensor a = random_spd({9, 9}), b = at::randn({9, 3}, at::kDouble);
  double last = 0;
  for (int steps = 1; steps <= 9; ++steps) {
    const at::Tensor x = conjugate_gradient(times(a), same, b, steps);
    const double now = ((x * at::matmul(a, x)).sum() / 2 - (x * b).sum()).item<double>();
    EXPECT_LT(now, last) << steps;
    last = now;
  }
}

TEST(ConjugateGradient, ThePerfectPreconditionerNeedsOneStep) {
  at::manual_seed(2);
  const at::Tensor a = random_spd({48, 48}), b = at::randn({48, 2}, at::kDouble);
  const at::Tensor x = conjugate_gradient(times(a), times(at::linalg_inv(a)), b, 1);
  EXPECT_LT(largest_difference(at::matmul(a, x), b), 1e-9);
}

TEST(ConjugateGradient, AnOperatorOnMatrices) {
  at::manual_seed(3);
  const at::Tensor left = random_spd({3, 3}), right = random_spd({5, 5}), x = at::randn({3, 5}, at::kDouble);
  const auto apply = [&](const at::Tensor& m) { return at::matmul(at::matmul(left, m), right); };
  EXPECT_LT(largest_difference(conjugate_gradient(apply, same, apply(x), 60), x), 1e-8);
}

TEST(ConjugateGradient, NothingToDoAndSingularOperators) {
  const at::Tensor a = at::diag(at::tensor({2.0, 0.0}, at::kDouble));
  EXPECT_EQ(conjugate_gradient(times(a), same, at::zeros({2, 1}, at::kDouble), 5).abs().max().item<double>(), 0);
  const at::Tensor b = at::tensor({6.0, 0.0}, at::kDouble).reshape({2, 1});
  EXPECT_LT(largest_difference(conjugate_gradient(times(a), same, b, 5), b / 2), 1e-15);
}

TEST(ConjugateGradient, ProblemsOfABatchDoNotMix) {
  at::manual_seed(4);
  const at::Tensor a = random_spd({3, 9, 9}), b = at::randn({3, 9, 2}, at::kDouble);
  b[1].zero_();  // solved from the start
  const at::Tensor all = batched_conjugate_gradient(times(a), same, b, 4);
  for (int64_t i = 0; i < 3; ++i) {
    EXPECT_LT(largest_difference(all[i], conjugate_gradient(times(a[i]), same, b[i], 4)), 1e-12) << i;
  }
}

}  // namespace
}  // namespace cinch
