#include "train/adamw.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

namespace cinch {
namespace {

AdamWPiece piece(const at::Tensor& value, int rate = 0, double weight_decay = 0, double scale = 1) {
  return {value, at::randn_like(value), at::zeros_like(value), at::zeros_like(value), rate, scale, weight_decay};
}

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
  const AdamWPiece a = piece(at::randn({3, 4}, at::kDouble), 0, 0.1), b = piece(at::randn({5}, at::kDouble), 1, 0, 3);
  for (const bool relative : {false, true}) {
    AdamW optimizer({a, b}, {});
    optimizer.reset();
    Plain plain_a(a.value), plain_b(b.value);
    for (int step = 0; step < 5; ++step) {
      a.gradient.copy_(at::randn_like(a.value));
      b.gradient.copy_(at::randn_like(b.value));
      plain_a.step(a.gradient, 5e-3, 0.1);
      plain_b.step(b.gradient, relative ? 1.5e-3 : 5e-4, 0.0);
      optimizer.step({5e-3, 5e-4}, relative);
    }
    EXPECT_EQ(optimizer.steps(), 5);
    for (const auto& [value, plain] : {std::pair{a.value, plain_a}, {b.value, plain_b}}) {
      for (size_t i = 0; i < plain.value.size(); ++i)
        EXPECT_NEAR(value.flatten()[static_cast<int64_t>(i)].item<double>(), plain.value[i], 1e-7);
    }
  }
}

TEST(AdamW, KnowsTheNormOfAllGradientsTogether) {
  const AdamWPiece a = piece(at::zeros({2})), b = piece(at::zeros({2}));
  a.gradient.copy_(at::tensor({3.0, 0.0}));
  b.gradient.copy_(at::tensor({0.0, 4.0}));
  AdamW optimizer({a, b}, {});
  EXPECT_NEAR(optimizer.squared_norm().item<double>(), 25, 1e-5);
  optimizer.scale_gradients(at::scalar_tensor(0.2));
  EXPECT_NEAR(a.gradient[0].item<double>(), 0.6, 1e-6);
  EXPECT_NEAR(b.gradient[1].item<double>(), 0.8, 1e-6);
  EXPECT_EQ(AdamW({}, {}).squared_norm().item<double>(), 0);
}

}  // namespace
}  // namespace cinch
