#include "train/planning/loss_bytes.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/train/tensor_bytes.h"
#include "train/linear_cross_entropy_kd.h"

namespace cinch {
namespace {

TEST(LossBytes, AreWhatTheLossHolds) {
  for (const auto& [type, bytes] : {std::pair{at::kFloat, 4}, {at::kBFloat16, 2}, {at::kDouble, 8}}) {
    for (const bool trains_head : {false, true}) {
      for (const bool teacher : {false, true}) {
        SCOPED_TRACE(testing::Message() << bytes << " bytes, head " << trains_head << ", teacher " << teacher);
        const LossShape shape = {.tokens = 1024,
                                 .vocabulary = 6000,
                                 .hidden_size = 64,
                                 .compute_bytes = bytes,
                                 .teacher = teacher,
                                 .trains_head = trains_head,
                                 .chunk_bytes = int64_t{20} << 20};
        const LossInputs inputs = {.hidden = at::randn({1024, 64}).to(type).requires_grad_(true),
                                   .head = at::randn({6000, 64}).to(type).requires_grad_(trains_head),
                                   .teacher_hidden = teacher ? at::randn({1024, 64}).to(type) : at::Tensor(),
                                   .teacher_head = at::randn({6000, 64}).to(type),
                                   .targets = at::randint(6000, {1024}, at::kLong)};
        const TensorBytes held;
        linear_cross_entropy_kd(inputs, {.weights = {1.0, teacher ? 1.0 : 0.0}, .chunk_bytes = shape.chunk_bytes})
            .total.backward();
        const auto planned = static_cast<double>(loss_bytes(shape)), most = static_cast<double>(held.most());
        EXPECT_LE(most, 1.1 * planned);
        EXPECT_GE(most, 0.75 * planned);
      }
    }
  }
}

TEST(LossBytes, OfEightThousandTokensAndALargeVocabulary) {
  const LossShape shape = {.tokens = 8192, .vocabulary = 131072, .hidden_size = 4096, .compute_bytes = 2};
  EXPECT_LT(loss_bytes(shape), 2'500'000'000);
}

}  // namespace
}  // namespace cinch
