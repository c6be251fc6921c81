#include "train/adamw.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

namespace cinch {
namespace {

at::Tensor leaf(at::IntArrayRef shape) { return at::randn(shape, at::kDouble).requires_grad_(true); }

/// The textbook's steps, element by element.
struct Plain {
  std::vector<double> value, mean, square;
  int64_t steps = 0;
  explicit Plain(const at::Tensor& start)
      : value(start.const_data_ptr<double>(), start.const_data_ptr<double>() + start.numel()),
        mean(value.size()),
        square(value.size()) {}
  void step(const at::Tensor& gradient, double rate, double decay) {
    ++steps;
    for (size_t i = 0; i < value.size(); ++i) {
      const double g = gradient.flatten()[static_cast<int64_t>(i)].item<double>();
      value[i] -= rate * decay * value[i];
      mean[i] = 0.9 * mean[i] + 0.1 * g;
      square[i] = 0.95 * square[i] + 0.05 * g * g;
      const double m = mean[i] / (1 - std::pow(0.9, steps)), v = square[i] / (1 - std::pow(0.95, steps));
      value[i] -= rate * m / (std::sqrt(v) + 1e-8);
    }
  }
};

TEST(AdamW, TakesTheTextbooksSteps) {
  at::manual_seed(1);
  const at::Tensor a = leaf({3, 4}), b = leaf({5});
  AdamW optimizer({{{a}, 1e-2, 0.1}, {{b}, 1e-3, 0.0}}, {});
  Plain plain_a(a), plain_b(b);
  for (int step = 0; step < 5; ++step) {
    optimizer.zero_grad();
    ((a * a).sum() + (b.sin() * (1 + step)).sum()).backward();
    plain_a.step(a.grad(), 1e-2 * 0.5, 0.1);
    plain_b.step(b.grad(), 1e-3 * 0.5, 0.0);
    optimizer.step(0.5);
  }
  for (size_t i = 0; i < plain_a.value.size(); ++i)
    EXPECT_NEAR(a.flatten()[static_cast<int64_t>(i)].item<double>(), plain_a.value[i], 1e-7);
  for (size_t i = 0; i < plain_b.value.size(); ++i)
    EXPECT_NEAR(b[static_cast<int64_t>(i)].item<double>(), plain_b.value[i], 1e-7);
}

TEST(AdamW, ClipsTheNormOfAllGradientsTogether) {
  const at::Tensor a = leaf({2}), b = leaf({2});
  AdamW optimizer({{{a}, 1e-2, 0}, {{b}, 1e-2, 0}}, {});
  (a * at::tensor({3.0, 0.0}, at::kDouble) + b * at::tensor({0.0, 4.0}, at::kDouble)).sum().backward();
  EXPECT_NEAR(optimizer.clip(0).item<double>(), 5, 1e-6);
  EXPECT_NEAR(optimizer.clip(10).item<double>(), 5, 1e-6);
  EXPECT_NEAR(a.grad()[0].item<double>(), 3, 1e-6);
  EXPECT_NEAR(optimizer.clip(1).item<double>(), 5, 1e-6);
  EXPECT_NEAR(a.grad()[0].item<double>(), 0.6, 1e-5);
  EXPECT_NEAR(b.grad()[1].item<double>(), 0.8, 1e-5);
}

TEST(AdamW, LeavesAloneWhatHasNoGradient) {
  const at::Tensor a = leaf({2}), b = leaf({2});
  const at::Tensor before = b.detach().clone();
  AdamW optimizer({{{a, b}, 1e-2, 0.5}}, {});
  a.sum().backward();
  optimizer.step(1);
  EXPECT_TRUE(at::equal(b.detach(), before));
  EXPECT_EQ(optimizer.state()[0].steps.item<float>(), 1);
  EXPECT_EQ(optimizer.state()[1].steps.item<float>(), 0);
}

}  // namespace
}  // namespace cinch
