#include "train/planning/training_plan.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/errors.h"
#include "model/model_family.h"
#include "tests/model/golden.h"
#include "train/planning/device_speed.h"

namespace cinch {
namespace {

using testing::HasSubstr;

constexpr int64_t kGiB = int64_t{1} << 30;

/// Llama-3-8B.
ModelConfig llama_8b() {
  const Json json = {{"architectures", {"LlamaForCausalLM"}},
                     {"model_type", "llama"},
                     {"hidden_size", 4096},
                     {"intermediate_size", 14336},
                     {"num_hidden_layers", 32},
                     {"num_attention_heads", 32},
                     {"num_key_value_heads", 8},
                     {"vocab_size", 128256},
                     {"max_position_embeddings", 8192},
                     {"rms_norm_eps", 1e-5},
                     {"rope_theta", 500000.0},
                     {"hidden_act", "silu"},
                     {"tie_word_embeddings", false}};
  return model_family("llama").parse(JsonObject(json, "config.json"));
}

TrainingPlanRequest request_8b() {
  return {.student = llama_8b(),
          .teacher = llama_8b(),
          .compute_bytes = 2,
          .window = 4096,
          .micro_batch = 1,
          .batch = 8,
          .tokens = 100'000'000,
          .world = 8,
          .recompute = true,
          .on_cpu = false};
}

TEST(TrainingPlan, CountsEveryWeightOnce) {
  const TrainingPlan plan = plan_training(request_8b());
  // Per layer q and o 4096 x 4096, k and v 1024 x 4096.
  constexpr int64_t kAttention = 32 * (2 * 4096 * 4096 + 2 * 1024 * 4096);
  EXPECT_EQ(plan.parameters, 8'030'261'248);
  EXPECT_EQ(plan.trained_parameters, kAttention);
  EXPECT_EQ(plan.teacher_parameters, kAttention);
  const TrainingMemory& whole = plan.memory[0];
  EXPECT_EQ(whole.frozen_weights, 2 * (plan.parameters - kAttention));
  EXPECT_EQ(whole.teacher_weights, 2 * kAttention);
  EXPECT_EQ(whole.trained_weights, 2 * kAttention);
  EXPECT_EQ(whole.master_weights, 4 * kAttention);
  EXPECT_EQ(whole.moments, 8 * kAttention);
  EXPECT_EQ(whole.gradients, 4 * kAttention);
  EXPECT_EQ(whole.communication, 0);
}

TEST(TrainingPlan, EachLevelSharesMore) {
  const TrainingPlan plan = plan_training(request_8b());
  const TrainingMemory &none = plan.memory[0], &states = plan.memory[1], &gradients = plan.memory[2],
                       &weights = plan.memory[3];
  EXPECT_EQ(states.moments, none.moments / 8);
  EXPECT_EQ(states.master_weights, none.master_weights / 8);
  EXPECT_EQ(states.trained_weights, none.trained_weights);
  EXPECT_EQ(gradients.gradients, none.gradients / 8);
  EXPECT_EQ(weights.trained_weights, none.trained_weights / 8);
  EXPECT_NEAR(static_cast<double>(weights.frozen_weights), static_cast<double>(none.frozen_weights) / 8, 1e5);
  EXPECT_GT(weights.communication, gradients.communication);
  for (int level = 1; level < kZeroLevels; ++level)
    EXPECT_LT(plan.memory[level].total(), plan.memory[level - 1].total()) << level;
}

TEST(TrainingPlan, ATeacherOfAWholeTrainingIsWhole) {
  TrainingPlanRequest request = request_8b();
  request.trains_all = true;
  const TrainingPlan plan = plan_training(request);
  EXPECT_EQ(plan.trained_parameters, plan.parameters);
  EXPECT_EQ(plan.teacher_parameters, plan.parameters);
  request.teacher.reset();
  EXPECT_EQ(plan_training(request).teacher_parameters, 0);
}

TEST(TrainingPlan, InOneTypeMastersAreTheWeights) {
  TrainingPlanRequest request = request_8b();
  request.compute_bytes = 4;
  for (const TrainingMemory& memory : plan_training(request).memory) EXPECT_EQ(memory.master_weights, 0);
}

TEST(TrainingPlan, ArithmeticIsTheUsualSixPerParameter) {
  TrainingPlanRequest request = request_8b();
  request.trains_all = true;
  request.recompute = false;
  request.teacher.reset();
  const TrainingFlops flops = plan_training(request).flops;
  const ModelConfig config = llama_8b();
  const auto embedding = static_cast<double>(config.vocab_size * config.hidden_size);
  const double products = 8'030'261'248.0 - embedding - 65.0 * 4096;  // no norms either
  // Causal: a query sees 2048.5 keys on average; scores and sums are two products of 4096 numbers per key and layer.
  const double attention = 32 * 2.0 * 2048.5 * 2 * 4096;
  EXPECT_NEAR(flops.total(), 6 * products + 3.5 * attention, 1e-9 * flops.total());

  request.recompute = true;
  request.teacher = config;
  const TrainingFlops more = plan_training(request).flops;
  EXPECT_DOUBLE_EQ(more.recomputation, flops.forward);
  EXPECT_DOUBLE_EQ(more.teacher, flops.forward);
  EXPECT_DOUBLE_EQ(more.loss, flops.loss + 2 * embedding);
}

TEST(TrainingPlan, AWindowOfAttentionCostsItsKeysAlone) {
  TrainingPlanRequest request = request_8b();
  const double whole = plan_training(request).flops.forward;
  for (AttentionSpec& spec : request.student.layers) spec.window = 1;  // each token sees itself
  const double alone = plan_training(request).flops.forward;
  EXPECT_NEAR(whole - alone, 32 * 2.0 * 2047.5 * 2 * 4096, 1e-6 * whole);
}

TEST(TrainingPlan, RunningLayersAgainKeepsOneActivationOfEach) {
  TrainingPlanRequest request = request_8b();
  const int64_t again = plan_training(request).memory[0].activations;
  EXPECT_EQ(again, 33 * int64_t{4096} * 4096 * 2);
  request.recompute = false;
  EXPECT_GT(plan_training(request).memory[0].activations, 10 * again);
}

TEST(TrainingPlan, NamesTheSmallestLevelThatFits) {
  const TrainingPlan plan = plan_training(request_8b());
  for (int level = 0; level < kZeroLevels; ++level)
    EXPECT_EQ(smallest_zero_level(plan, plan.memory[level].total()), level);
  EXPECT_FALSE(smallest_zero_level(plan, plan.memory[3].total() - 1));
}

TEST(TrainingPlan, SaysTheWayToFit) {
  TrainingPlanRequest request = request_8b();
  request.recompute = false;
  request.micro_batch = 4;
  request.batch = 32;
  const TrainingPlan plan = plan_training(request);
  const auto way = [&plan](int64_t gib) { return way_to_fit(plan, gib * kGiB); };
  EXPECT_THAT(way(80), HasSubstr("with --micro-batch 2, --zero 0: "));
  EXPECT_THAT(way(60), HasSubstr("with --micro-batch 2, --zero 1: "));
  EXPECT_THAT(way(30), HasSubstr("with --micro-batch 1, --zero 3: "));
  EXPECT_THAT(way(12), HasSubstr("with --recompute, --micro-batch 2, --zero 3: "));
  EXPECT_THAT(way(6), HasSubstr("processes, --zero 3: "));
  EXPECT_THAT(way(1), HasSubstr("with a shorter --window, or "));
}

TEST(TrainingPlan, RefusesWhatDoesNotFitTogether) {
  TrainingPlanRequest request = request_8b();
  request.batch = 12;
  EXPECT_THROW(plan_training(request), UsageError);
  request = request_8b();
  request.window = 8193;
  EXPECT_THROW(plan_training(request), UsageError);
  request = request_8b();
  request.teacher->vocab_size = 1000;
  EXPECT_THROW(plan_training(request), UnsupportedError);
}

TEST(TrainingPlan, EveryFamilyCanBePlanned) {
  for (const GoldenCase& family : golden_families()) {
    const auto source = GoldenModel(family).open();
    const TrainingPlan plan =
        plan_training({.student = source->config(), .teacher = source->config(), .window = 32, .tokens = 4096});
    EXPECT_GT(plan.trained_parameters, 0) << family.name;
    EXPECT_EQ(plan.trained_parameters, plan.teacher_parameters) << family.name;
  }
}

TEST(TrainingPlan, JsonNamesTheLevelOrTheWayOut) {
  const TrainingPlan plan = plan_training(request_8b());
  const Json fits = training_plan_json(plan, {.memory_bytes = 80 * kGiB, .flops = 4e14});
  EXPECT_EQ(fits["zero"], 0);
  EXPECT_EQ(fits["way_out"], nullptr);
  EXPECT_NEAR(fits["tokens_per_second"].get<double>(), 8 * 4e14 / plan.flops.total(), 1e-6);
  EXPECT_EQ(fits["memory"][0]["total_bytes"], plan.memory[0].total());
  const Json tight = training_plan_json(plan, {.memory_bytes = 6 * kGiB});
  EXPECT_EQ(tight["zero"], nullptr);
  EXPECT_EQ(tight["tokens_per_second"], nullptr);
  EXPECT_THAT(tight["way_out"].get<std::string>(), HasSubstr("--zero 3"));
}

TEST(DeviceSpeed, IsFoundOnTheCpu) {
  EXPECT_GT(free_memory_bytes(at::kCPU), int64_t{100} << 20);
  const double speed = matrix_product_flops(at::kCPU, at::kFloat);
  EXPECT_GT(speed, 1e8);
  EXPECT_LT(speed, 1e15);
}

}  // namespace
}  // namespace cinch
