#include "train/trainer.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <numeric>
#include <set>

#include "core/errors.h"
#include "tests/model/golden.h"

namespace cinch {
namespace {

std::vector<int64_t> text(int64_t tokens, int64_t vocabulary) {
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < tokens; ++i) ids.push_back((i * i * 31 + i * 7) % vocabulary);
  return ids;
}

struct TinyRun {
  std::shared_ptr<ModelSource> source = GoldenModel({"llama_gqa"}).open();
  TrainedModel model;
  Teacher teacher;
  TokenSamples samples{text(2000, 96), 16, 5};
  Trainer trainer;

  static TrainRecipe recipe() {
    return {.loss = {0.5, 0.5},
            .learning_rate = 1e-3,
            .schedule = {.steps = 8, .warmup_steps = 2},
            .batch = 8,
            .micro_batch = 4};
  }
  explicit TinyRun(const TrainRecipe& recipe = TinyRun::recipe(),
                   TrainedModel::Options options = {.compute = at::kDouble})
      : model(source, options),
        teacher(GoldenModel({"llama_gqa"}).open(), model, options.compute, at::kCPU),
        trainer(model, &teacher, samples, recipe) {}

  std::vector<at::Tensor> weights() const {
    std::vector<at::Tensor> result;
    for (const Parameter& parameter : model.parameters()) result.push_back(parameter.value.detach().clone());
    return result;
  }
  void steps(int count) {
    for (int i = 0; i < count; ++i) trainer.step();
  }
};

void expect_near(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b, double tolerance) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_LE(relative_difference(a[i], b[i]), tolerance) << i;
}

TEST(Trainer, AccumulationAndRecomputationDoNotMatter) {
  TinyRun whole([] {
    TrainRecipe r = TinyRun::recipe();
    r.micro_batch = 8;
    return r;
  }());
  whole.steps(5);
  for (const int64_t micro : {1, 2, 4}) {
    for (const bool recompute : {false, true}) {
      TrainRecipe recipe = TinyRun::recipe();
      recipe.micro_batch = micro;
      TinyRun run(recipe, {.compute = at::kDouble, .recompute = recompute});
      run.steps(5);
      expect_near(run.weights(), whole.weights(), 1e-12);
    }
  }
}

TEST(Trainer, ResumesToTheBit) {
  const TempFolder folder;
  TinyRun straight, first, second;
  straight.steps(6);
  first.steps(3);
  first.trainer.save(folder / "states");
  EXPECT_TRUE(second.trainer.resume(folder / "states"));
  EXPECT_EQ(second.trainer.steps_done(), 3);
  second.steps(3);
  const auto a = straight.weights(), b = second.weights();
  for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(at::equal(a[i], b[i])) << i;
}

TEST(Trainer, KeepsTheLastStatesAndIgnoresUnfinishedOnes) {
  const TempFolder folder;
  TinyRun run;
  for (int i = 0; i < 4; ++i) {
    run.steps(1);
    run.trainer.save(folder / "states", 2);
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
  run.trainer.save(folder / "states");
  TrainRecipe recipe = TinyRun::recipe();
  recipe.learning_rate = 2e-3;
  try {
    TinyRun(recipe).trainer.resume(folder / "states");
    FAIL();
  } catch (const std::exception& error) {
    const ErrorReport report = describe_error(error);
    EXPECT_EQ(report.exit_code, ExitCode::bad_input);
    EXPECT_THAT(report.lines.front(), testing::HasSubstr("learning_rate is 0.001, this run's is 0.002"));
  }
  const auto file = folder / "states" / "step_1" / "state.safetensors";
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

TEST(Trainer, ChecksItsRecipe) {
  const auto with = [](const std::function<void(TrainRecipe&)>& change) {
    TrainRecipe recipe = TinyRun::recipe();
    change(recipe);
    return recipe;
  };
  EXPECT_THROW(with([](TrainRecipe& r) { r.micro_batch = 3; }).check(), UsageError);
  EXPECT_THROW(with([](TrainRecipe& r) { r.loss = {0, 0}; }).check(), UsageError);
  EXPECT_THROW(with([](TrainRecipe& r) { r.learning_rate = -1; }).check(), UsageError);
  EXPECT_THROW(with([](TrainRecipe& r) { r.schedule.steps = 0; }).check(), UsageError);
  EXPECT_NO_THROW(TinyRun::recipe().check());
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
