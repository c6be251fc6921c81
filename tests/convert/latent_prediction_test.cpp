#include "convert/solvers/latent_prediction.h"

#include <gtest/gtest.h>

#include "tests/convert/latent_case.h"

namespace cinch {
namespace {

class LatentPredictionTest : public testing::TestWithParam<LatentCase> {
 protected:
  LatentPredictionTest() {
    at::manual_seed(5);
    const LatentCase& c = GetParam();
    // Inputs of falling variance, as real ones have.
    const at::Tensor spread = at::pow(0.97, at::arange(c.hidden(), at::kDouble));
    layer_ = std::make_unique<LatentLayer>(c, c.random_weights(), at::randn({6, 40, c.hidden()}, at::kDouble) * spread);
  }
  LatentPrediction predict(int64_t rotary_dim) const {
    const RotarySurvey survey = layer_->survey(rotary_dim == GetParam().all_keys());
    return predict_latent(layer_->heads, layer_->moments, survey, choose_slots({&survey}, rotary_dim));
  }
  std::unique_ptr<LatentLayer> layer_;
};

TEST_P(LatentPredictionTest, FullSizesLoseNothing) {
  const int64_t keys = GetParam().all_keys();
  EXPECT_LT(predict(keys).error(keys), 1e-6);
  EXPECT_LT(predict(keys).lost_rotation, 1e-12);
}

TEST_P(LatentPredictionTest, ErrorNeverRisesWithSizes) {
  const int64_t keys = GetParam().all_keys();
  for (int64_t rotary_dim = 0; rotary_dim < keys; rotary_dim += 4) {
    const LatentPrediction now = predict(rotary_dim), more = predict(rotary_dim + 4);
    for (int64_t rank = 1; rank + 1 < now.dropped.size(0); ++rank) {
      EXPECT_LE(now.error(rank + 1), now.error(rank) + 1e-12);
      EXPECT_LE(now.error(rank), now.error(rank, cache_noise(8)) + 1e-12);
      EXPECT_LE(now.error(rank, cache_noise(8)), now.error(rank, cache_noise(4)) + 1e-12);
    }
    EXPECT_LE(more.lost_rotation, now.lost_rotation + 1e-9);
  }
}

TEST_P(LatentPredictionTest, IsNearTheErrorOfTheFit) {
  const int64_t keys = GetParam().all_keys();
  for (const double share : {0.4, 0.6}) {
    const auto rank = static_cast<int64_t>(share * static_cast<double>(keys) * 2 - 8);
    const double predicted = predict(8).error(rank), measured = std::sqrt(layer_->error(layer_->fit(rank, 8)));
    EXPECT_GT(predicted / measured, 0.4) << rank;
    EXPECT_LT(predicted / measured, 2.5) << rank;
  }
}

TEST(CacheNoise, FallsAsBitsRise) {
  EXPECT_EQ(cache_noise(16), 0);
  // Uniform rounding of the range of 64 normal numbers, 4.74 standard deviations, in 15 steps.
  EXPECT_NEAR(cache_noise(4), 4.74 * 4.74 / (12 * 225), 1e-9);
  EXPECT_LT(cache_noise(8), cache_noise(4) / 200);
}

INSTANTIATE_TEST_SUITE_P(Layers, LatentPredictionTest,
                         testing::Values(LatentCase{.name = "plain"},
                                         LatentCase{.name = "biased", .heads = 9, .kv_heads = 3, .bias = true},
                                         LatentCase{.name = "windowed", .window = 12, .rotary_dim = 8}));

}  // namespace
}  // namespace cinch
