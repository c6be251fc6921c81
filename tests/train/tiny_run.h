// A few steps of training of a tiny random model on itself or on another.
#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/model/golden.h"
#include "train/trainer.h"

namespace cinch {

inline std::vector<int64_t> arbitrary_text(int64_t tokens, int64_t vocabulary) {
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < tokens; ++i) ids.push_back((i * i * 31 + i * 7) % vocabulary);
  return ids;
}

inline TrainRecipe tiny_recipe(int64_t steps = 8) {
  return {.stages = {{.loss = {0.5, 0.5},
                      .learning_rates = {1e-3, 1e-3, 1e-3},
                      .schedule = {.steps = steps, .warmup_steps = 2}}},
          .batch = 8,
          .micro_batch = 4};
}

/// Next token (away from the teacher, which is the same model), then the local stage, then both losses.
inline TrainRecipe every_stage(int64_t steps) {
  TrainRecipe recipe = tiny_recipe(steps);
  TrainStage next_token = recipe.stages.front(), local = next_token;
  next_token.loss = {1, 0};
  local.local = true;
  recipe.stages = {next_token, local, recipe.stages.front()};
  return recipe;
}

struct TinyRun {
  TrainedModel model;
  Teacher teacher;
  TokenSamples samples{arbitrary_text(2000, 96), 16, 5};
  Trainer trainer;

  explicit TinyRun(const TrainRecipe& recipe = tiny_recipe(), TrainedModel::Options options = {.compute = at::kDouble},
                   const std::shared_ptr<ProcessGroup>& group = single_process(),
                   const std::string& family = "llama_gqa")
      : model(GoldenModel({family}).open(), options, group),
        teacher(GoldenModel({family}).open(), model),
        trainer(model, &teacher, samples, recipe) {}

  std::vector<at::Tensor> weights() const {
    std::vector<at::Tensor> result;
    model.visit_trained([&](const std::string&, const at::Tensor& value) { result.push_back(value.clone()); });
    return result;
  }
  void steps(int64_t count) {
    for (int64_t i = 0; i < count; ++i) trainer.step();
  }
  void save(const std::filesystem::path& folder, int keep = 2) {
    StateWriter writer(folder, model.group(), keep);
    trainer.save(writer);
    writer.finish();
  }
};

inline void expect_near(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b, double tolerance) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_LE(relative_difference(a[i], b[i]), tolerance) << i;
}

inline void expect_equal(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(at::equal(a[i], b[i])) << i;
}

}  // namespace cinch
