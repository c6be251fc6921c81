#include "convert/solvers/softmax_metric.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace cinch {
namespace {

at::Tensor random(at::IntArrayRef shape, at::ScalarType type) { return at::rand(shape, at::kDouble).to(type); }

class SoftmaxMetric : public testing::TestWithParam<at::ScalarType> {
 protected:
  void SetUp() override { at::manual_seed(3); }
};

TEST_P(SoftmaxMetric, IsTheFormulaOnEveryPath) {
  for (const int64_t keys : {1, 7, 16, 50, 513}) {
    const at::Tensor error = random({3, 5, keys}, GetParam()) - 0.5, weight = random({3, 5, keys}, GetParam()),
                     mean = random({3, 5, keys}, GetParam());
    const at::Tensor e = error.to(at::kDouble), m = mean.to(at::kDouble);
    const at::Tensor expected = weight.to(at::kDouble) * e - m * (m * e).sum(-1, true);
    const double allowed = (GetParam() == at::kDouble ? 1e-14 : 1e-6) * static_cast<double>(keys);
    EXPECT_LT((softmax_gradient_(error.clone(), weight, mean) - expected).abs().max().item<double>(), allowed);
    const at::Tensor strided = error.transpose(0, 1).contiguous().transpose(0, 1);
    EXPECT_LT((softmax_gradient_(strided, weight, mean) - expected).abs().max().item<double>(), allowed);
  }
}

INSTANTIATE_TEST_SUITE_P(Types, SoftmaxMetric, testing::Values(at::kFloat, at::kDouble));

TEST(SoftmaxMetric, IsTheGradientOfTheVariance) {
  at::manual_seed(4);
  const at::Tensor p = at::softmax(at::randn({1, 1, 9}, at::kDouble), -1), e = at::randn({1, 1, 9}, at::kDouble);
  const auto variance = [&](const at::Tensor& x) {
    return ((p * x.square()).sum() - (p * x).sum().square()).item<double>();
  };
  const at::Tensor gradient = softmax_gradient_(e.clone(), p, p);
  for (int64_t i = 0; i < 9; ++i) {
    at::Tensor up = e.clone(), down = e.clone();
    up[0][0][i] += 1e-5;
    down[0][0][i] -= 1e-5;
    EXPECT_NEAR((variance(up) - variance(down)) / 4e-5, gradient[0][0][i].item<double>(), 1e-9);
  }
}

}  // namespace
}  // namespace cinch
