#include "eval/token_scores.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

namespace cinch {
namespace {

/// The obvious formula in fp64.
struct Naive {
  double nll, reference_nll, kl;
  bool agrees;
};
Naive naive(const at::Tensor& logits, const at::Tensor& reference, int64_t target) {
  const at::Tensor p = logits.to(at::kDouble).log_softmax(0), q = reference.to(at::kDouble).log_softmax(0);
  return {-p[target].item<double>(), -q[target].item<double>(), (q.exp() * (q - p)).sum().item<double>(),
          p.argmax().item<int64_t>() == q.argmax().item<int64_t>()};
}

TEST(TokenScores, EqualNaiveDouble) {
  at::manual_seed(3);
  for (const double noise : {10.0, 1.0, 0.01}) {
    const at::Tensor logits = 8 * at::randn({23, 777}), reference = logits + noise * at::randn({23, 777});
    const at::Tensor targets = at::randint(777, {23}, at::kLong);
    TokenScores scores;
    at::Tensor a = logits.clone(), b = reference.clone();
    scores.add_rows(a, b, targets);
    ASSERT_EQ(scores.kl.size(), 23u);
    for (int64_t i = 0; i < 23; ++i) {
      const Naive expected = naive(logits[i], reference[i], targets[i].item<int64_t>());
      const auto at = static_cast<size_t>(i);
      EXPECT_NEAR(scores.nll[at], expected.nll, 4e-6);
      EXPECT_NEAR(scores.reference_nll[at], expected.reference_nll, 4e-6);
      EXPECT_NEAR(scores.kl[at], expected.kl, 2e-7 + 1e-6 * expected.kl);
      EXPECT_EQ(scores.agrees[at] != 0, expected.agrees);
    }
  }
}

TEST(TokenScores, BlocksGiveTheSame) {
  at::manual_seed(4);
  const int64_t vocabulary = 1 << 20;  // two rows in a block
  const at::Tensor logits = at::randn({5, vocabulary}), reference = logits + 0.1 * at::randn({5, vocabulary});
  const at::Tensor targets = at::arange(5, at::kLong);
  TokenScores scores;
  at::Tensor a = logits.clone(), b = reference.clone();
  scores.add_rows(a, b, targets);
  for (int64_t i = 0; i < 5; ++i) {
    const Naive expected = naive(logits[i], reference[i], i);
    EXPECT_NEAR(scores.nll[static_cast<size_t>(i)], expected.nll, 1e-5);
    EXPECT_NEAR(scores.kl[static_cast<size_t>(i)], expected.kl, 1e-6);
  }
}

TEST(TokenScores, HugeLogitsStayFinite) {
  TokenScores scores;
  at::Tensor a = at::tensor({1e4f, -1e4f, 0.f}).unsqueeze(0), b = at::tensor({-1e4f, 1e4f, 0.f}).unsqueeze(0);
  scores.add_rows(a, b, at::tensor({int64_t{1}}, at::kLong));
  EXPECT_NEAR(scores.nll[0], 2e4, 1e-2);
  EXPECT_NEAR(scores.kl[0], 2e4, 1e-2);
  EXPECT_EQ(scores.agrees[0], 0);
}

TEST(MeanOverWindows, UnequalWindows) {
  const WindowMean result = mean_over_windows({2, 2, 2, 6}, {3, 1});
  EXPECT_DOUBLE_EQ(result.mean, 3);
  EXPECT_DOUBLE_EQ(result.standard_error, std::sqrt((9.0 + 9.0) / 2) / 2);  // residuals -3 and 3
}

TEST(Yardstick, Classes) {
  EXPECT_EQ(yardstick_of(0.0001), "Q8");
  EXPECT_EQ(yardstick_of(0.002), "Q5");
  EXPECT_EQ(yardstick_of(0.05), "Q3_K_M");
  EXPECT_EQ(yardstick_of(0.3), "visible damage");
}

}  // namespace
}  // namespace cinch
