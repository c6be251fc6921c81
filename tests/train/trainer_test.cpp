#include "train/trainer.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <numeric>
#include <set>

#include "core/errors.h"
#include "tests/train/tiny_run.h"

namespace cinch {
namespace {

TEST(Trainer, ResumesToTheBit) {
  const TempFolder folder;
  TinyRun straight, first, second;
  straight.steps(6);
  first.steps(3);
  first.save(folder / "states");
  EXPECT_TRUE(second.trainer.resume(folder / "states"));
  EXPECT_EQ(second.trainer.steps_done(), 3);
  second.steps(3);
  expect_equal(second.weights(), straight.weights());
}

TEST(Trainer, StagesFollowEachOtherAndResumeInTheMiddle) {
  const auto recipe = [] {
    TrainRecipe r = every_stage(4);
    r.stages.front().schedule.steps = 3;
    r.guard.fewest = 2;  // the local error is far from the losses that follow
    return r;
  };
  const TempFolder folder;
  TinyRun straight(recipe()), first(recipe()), second(recipe());
  std::vector<size_t> stages;
  while (!straight.trainer.done()) {
    const StepReport step = straight.trainer.step();
    stages.push_back(step.stage);
    EXPECT_EQ(step.local > 0, step.stage == 1) << step.step;
    EXPECT_EQ(step.cross_entropy > 0, step.stage != 1) << step.step;
  }
  EXPECT_EQ(stages, (std::vector<size_t>{0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2}));
  first.steps(5);
  first.save(folder / "states");
  ASSERT_TRUE(second.trainer.resume(folder / "states"));
  second.steps(6);
  expect_equal(second.weights(), straight.weights());
}

TEST(Trainer, KeepsTheLastStatesAndIgnoresUnfinishedOnes) {
  const TempFolder folder;
  TinyRun run;
  for (int i = 0; i < 4; ++i) {
    run.steps(1);
    run.save(folder / "states", 2);
  }
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder / "states"))
    names.insert(entry.path().filename().string());
  EXPECT_EQ(names, (std::set<std::string>{"step_3", "step_4"}));
  std::filesystem::create_directories(folder / "states" / "step_9.tmp");
  std::filesystem::create_directories(folder / "states" / "step_7");  // without a manifest: a killed run
  TinyRun other;
  EXPECT_TRUE(other.trainer.resume(folder / "states"));
  EXPECT_EQ(other.trainer.steps_done(), 4);
  EXPECT_FALSE(TinyRun().trainer.resume(folder / "nothing"));
}

TEST(Trainer, RefusesStatesOfOtherRunsAndDamagedOnes) {
  const TempFolder folder;
  TinyRun run;
  run.steps(1);
  run.save(folder / "states");
  TrainRecipe recipe = tiny_recipe();
  recipe.clip = 2;
  try {
    TinyRun(recipe).trainer.resume(folder / "states");
    FAIL();
  } catch (const std::exception& error) {
    const ErrorReport report = describe_error(error);
    EXPECT_EQ(report.exit_code, ExitCode::bad_input);
    EXPECT_THAT(report.lines.front(), testing::HasSubstr("clip is 1.0, this run's is 2.0"));
  }
  const auto file = folder / "states" / "step_1" / "share_0_of_1.safetensors";
  {
    std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
    stream.seekp(-3, std::ios::end);
    stream.put('x');
  }
  try {
    TinyRun().trainer.resume(folder / "states");
    FAIL();
  } catch (const std::exception& error) {
    EXPECT_THAT(describe_error(error).lines.front(), testing::HasSubstr("is not what was saved"));
  }
  std::filesystem::resize_file(file, 1000);
  EXPECT_ANY_THROW(TinyRun().trainer.resume(folder / "states"));
}

/// Adam's first step is the rate itself, so that a step tells what the rate was.
TEST(Trainer, RelativeRatesFollowTheSizeOfEachWeight) {
  TrainRecipe recipe = tiny_recipe();
  recipe.weight_decay = 0;
  recipe.stages[0].loss = {1, 0};
  recipe.stages[0].schedule.warmup_steps = 0;
  recipe.stages[0].relative_rates = true;
  recipe.stages[0].learning_rates = {1e-3, 1e-3, 1e-3};
  TinyRun run(recipe, {.trainable = Trainable::all, .compute = at::kDouble}, single_process(), "qwen2");
  const std::vector<at::Tensor> before = run.weights();
  run.steps(1);
  const std::vector<at::Tensor> after = run.weights();
  for (size_t i = 0; i < before.size(); ++i) {
    const double size = before[i].square().mean().sqrt().item<double>();
    const double moved = (after[i] - before[i]).abs().median().item<double>();
    EXPECT_NEAR(moved, 1e-3 * size, 1e-5 * size) << i;
  }
}

TEST(Trainer, ChecksItsRecipe) {
  const auto with = [](const std::function<void(TrainRecipe&)>& change) {
    TrainRecipe recipe = tiny_recipe();
    change(recipe);
    return recipe;
  };
  EXPECT_THROW(with([](TrainRecipe& r) { r.micro_batch = 0; }).check(), UsageError);
  EXPECT_THROW(with([](TrainRecipe& r) { r.stages[0].loss = {0, 0}; }).check(), UsageError);
  EXPECT_THROW(with([](TrainRecipe& r) { r.stages[0].learning_rates[0] = -1; }).check(), UsageError);
  EXPECT_THROW(with([](TrainRecipe& r) { r.stages[0].schedule.steps = 0; }).check(), UsageError);
  EXPECT_NO_THROW(tiny_recipe().check());
}

TEST(TokenSamples, TargetsAreTheNextTokens) {
  std::vector<int64_t> ids(101);
  std::iota(ids.begin(), ids.end(), int64_t{0});
  const TokenSamples samples(ids, 10, 1);
  EXPECT_EQ(samples.samples(), 10);
  const TokenSamples::Batch batch = samples.batch(7, 6);  // over the end of the epoch
  EXPECT_TRUE(at::equal(batch.targets, batch.ids + 1));
  EXPECT_TRUE(at::equal(samples.batch(9, 1).ids, batch.ids.narrow(0, 2, 1)));
  EXPECT_THROW(TokenSamples(ids, 101, 1), UsageError);
  EXPECT_THROW(TokenSamples({}, 10, 1), UsageError);
  EXPECT_THROW(TokenSamples(ids, 0, 1), UsageError);
}

}  // namespace
}  // namespace cinch
