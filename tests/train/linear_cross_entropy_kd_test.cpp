#include "train/linear_cross_entropy_kd.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include "core/errors.h"

namespace cinch {
namespace {

constexpr int64_t kTokens = 23, kWidth = 12, kTeacherWidth = 10, kVocabulary = 37;

LossInputs random_inputs(at::ScalarType dtype = at::kDouble) {
  at::manual_seed(3);
  LossInputs in;
  const auto random = [&](int64_t rows, int64_t columns) { return at::randn({rows, columns}, at::kDouble).to(dtype); };
  in.hidden = random(kTokens, kWidth).requires_grad_(true);
  in.head = random(kVocabulary, kWidth).requires_grad_(true);
  in.teacher_hidden = random(kTokens, kTeacherWidth);
  in.teacher_head = random(kVocabulary, kTeacherWidth);
  in.targets = at::randint(kVocabulary, {kTokens}, at::kLong);
  for (const int64_t ignored : {0, 7, 22}) in.targets[ignored] = kIgnoredTarget;
  return in;
}

/// The same, all logits at once, by ATen's own operations.
struct Naive {
  at::Tensor total, cross_entropy, distillation;
};
Naive naive(const LossInputs& in, const LossOptions& options) {
  const auto logits = [&](const at::Tensor& hidden, const at::Tensor& head) {
    const at::Tensor z = at::linear(hidden, head);
    return options.softcap > 0 ? at::tanh(z / options.softcap) * options.softcap : z;
  };
  const at::Tensor counted = in.targets.ne(kIgnoredTarget);
  const at::Tensor student = logits(in.hidden, in.head).log_softmax(1);
  const at::Tensor teacher = logits(in.teacher_hidden, in.teacher_head).log_softmax(1);
  const double tokens =
      options.denominator > 0 ? static_cast<double>(options.denominator) : counted.sum().item<double>();
  const at::Tensor nll = -student.gather(1, in.targets.clamp_min(0).unsqueeze(1)).squeeze(1);
  const at::Tensor kl = (teacher.exp() * (teacher - student)).sum(1);
  Naive result;
  result.cross_entropy = at::where(counted, nll, 0).sum() / tokens;
  result.distillation = at::where(counted, kl, 0).sum() / tokens;
  result.total =
      options.weights.cross_entropy * result.cross_entropy + options.weights.distillation * result.distillation;
  return result;
}

double difference(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).abs().max() / b.abs().max().clamp_min(1e-12)).item<double>();
}

class LossOfWeights : public testing::TestWithParam<LossOptions> {};

TEST_P(LossOfWeights, ValueAndGradientsEqualTheNaiveOnes) {
  const LossOptions& options = GetParam();
  const LossInputs in = random_inputs();
  const LossValue found = linear_cross_entropy_kd(in, options);
  (found.total * 1.7).backward();
  const at::Tensor hidden = in.hidden.grad().clone(), head = in.head.grad().clone();

  LossInputs other = in;
  other.hidden = in.hidden.detach().requires_grad_(true);
  other.head = in.head.detach().requires_grad_(true);
  const Naive expected = naive(other, options);
  (expected.total * 1.7).backward();
  EXPECT_NEAR(found.total.item<double>(), expected.total.item<double>(), 1e-10);
  if (options.weights.cross_entropy != 0) {
    EXPECT_NEAR(found.cross_entropy.item<double>(), expected.cross_entropy.item<double>(), 1e-10);
  }
  if (options.weights.distillation != 0) {
    EXPECT_NEAR(found.distillation.item<double>(), expected.distillation.item<double>(), 1e-10);
  }
  EXPECT_LT(difference(hidden, other.hidden.grad()), 1e-10);
  EXPECT_LT(difference(head, other.head.grad()), 1e-10);
}

constexpr int64_t kOneRow = 1, kFewRows = 4 * kVocabulary * 8 * 5, kAllRows = int64_t{1} << 30;

INSTANTIATE_TEST_SUITE_P(Options, LossOfWeights,
                         testing::Values(LossOptions{}, LossOptions{.weights = {1, 0}},
                                         LossOptions{.weights = {0.3, 0.7}},
                                         LossOptions{.weights = {0.3, 0.7}, .chunk_bytes = kOneRow},
                                         LossOptions{.weights = {0.3, 0.7}, .softcap = 3, .chunk_bytes = kFewRows},
                                         LossOptions{.weights = {1, 2}, .denominator = 100, .chunk_bytes = kAllRows}),
                         [](const auto& param_info) { return "case" + std::to_string(param_info.index); });

TEST(LinearCrossEntropyKd, ChunksDoNotMatter) {
  const LossInputs in = random_inputs();
  const auto loss = [&](int64_t bytes) {
    return linear_cross_entropy_kd(in, {.weights = {0.5, 0.5}, .chunk_bytes = bytes}).total.item<double>();
  };
  EXPECT_NEAR(loss(kOneRow), loss(kAllRows), 1e-12);
  EXPECT_EQ(loss_chunk_rows(kVocabulary, 4 * 8, kFewRows), 5);
  EXPECT_EQ(loss_chunk_rows(kVocabulary, 4 * 8, kOneRow), 1);
}

TEST(LinearCrossEntropyKd, FrozenHeadsGetNoGradient) {
  LossInputs in = random_inputs();
  in.head = in.head.detach();
  linear_cross_entropy_kd(in, {}).total.backward();
  EXPECT_TRUE(in.hidden.grad().defined());
  EXPECT_FALSE(in.head.grad().defined());
  const at::NoGradGuard no_grad;
  EXPECT_FALSE(linear_cross_entropy_kd(in, {}).total.requires_grad());
}

TEST(LinearCrossEntropyKd, BatchesAddUpWithACommonDenominator) {
  const LossInputs whole = random_inputs();
  const double expected = linear_cross_entropy_kd(whole, {.weights = {1, 1}, .denominator = 20}).total.item<double>();
  double sum = 0;
  for (const auto& [first, count] : {std::pair{0, 9}, std::pair{9, 14}}) {
    LossInputs part = whole;
    part.hidden = whole.hidden.narrow(0, first, count);
    part.teacher_hidden = whole.teacher_hidden.narrow(0, first, count);
    part.targets = whole.targets.narrow(0, first, count);
    sum += linear_cross_entropy_kd(part, {.weights = {1, 1}, .denominator = 20}).total.item<double>();
  }
  EXPECT_NEAR(sum, expected, 1e-12);
}

TEST(LinearCrossEntropyKd, ATeacherWhoIsTheStudentIsAtDistanceZero) {
  LossInputs in = random_inputs();
  in.teacher_hidden = in.hidden.detach();
  in.teacher_head = in.head.detach();
  const LossValue value = linear_cross_entropy_kd(in, {});
  value.total.backward();
  EXPECT_NEAR(value.total.item<double>(), 0, 1e-12);
  EXPECT_LT(in.hidden.grad().abs().max().item<double>(), 1e-12);
}

TEST(LinearCrossEntropyKd, NarrowTypesAreCloseToFp64) {
  LossInputs wide = random_inputs();
  linear_cross_entropy_kd(wide, {.weights = {0.5, 0.5}}).total.backward();
  for (const auto& [dtype, tolerance] : {std::pair{at::kFloat, 1e-5}, std::pair{at::kBFloat16, 0.05}}) {
    LossInputs narrow = random_inputs(dtype);
    const LossValue value = linear_cross_entropy_kd(narrow, {.weights = {0.5, 0.5}});
    value.total.backward();
    EXPECT_EQ(value.total.scalar_type(), at::kFloat);
    EXPECT_EQ(narrow.head.grad().scalar_type(), dtype);
    EXPECT_LT(difference(narrow.hidden.grad().to(at::kDouble), wide.hidden.grad()), tolerance);
    EXPECT_LT(difference(narrow.head.grad().to(at::kDouble), wide.head.grad()), tolerance);
  }
}

TEST(LinearCrossEntropyKd, RefusesInputsThatDoNotFit) {
  LossInputs in = random_inputs();
  in.targets = in.targets.slice(0, 1);
  EXPECT_THROW(linear_cross_entropy_kd(in, {}), ShapeError);
  in = random_inputs();
  in.teacher_head = at::Tensor();
  EXPECT_THROW(linear_cross_entropy_kd(in, {}), ShapeError);
  EXPECT_NO_THROW(linear_cross_entropy_kd(in, {.weights = {1, 0}}));
  in = random_inputs();
  in.teacher_head = in.teacher_head.slice(0, 1);
  EXPECT_THROW(linear_cross_entropy_kd(in, {}), ShapeError);
}

}  // namespace
}  // namespace cinch
