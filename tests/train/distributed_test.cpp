// Several processes train what one does.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/errors.h"
#include "tests/train/processes.h"
#include "tests/train/tiny_run.h"

namespace cinch {
namespace {

namespace fs = std::filesystem;

fs::path test_folder() { return std::getenv("CINCH_TEST_FOLDER"); }

struct Variant {
  int zero;
  int64_t micro_batch;
  bool recompute;
  Trainable trainable;
};

std::vector<Variant> variants() {
  std::vector<Variant> all;
  for (const Trainable trainable : {Trainable::attention, Trainable::all}) {
    for (const int zero : {0, 1, 2, 3}) {
      for (const int64_t micro_batch : {8, 1}) {  // accumulation: all at once; 8, 4 or 2 parts on 1, 2 or 4 processes
        for (const bool recompute : {false, true}) all.push_back({zero, micro_batch, recompute, trainable});
      }
    }
  }
  return all;
}

std::vector<at::Tensor> weights_after_5(const Variant& variant, const std::shared_ptr<ProcessGroup>& group,
                                        const std::string& family) {
  TrainRecipe recipe = tiny_recipe();
  recipe.micro_batch = variant.micro_batch;
  TinyRun run(
      recipe,
      {.trainable = variant.trainable, .compute = at::kDouble, .recompute = variant.recompute, .zero = {variant.zero}},
      group, family);
  run.steps(5);
  return run.weights();
}

void expect_same_weights(const std::shared_ptr<ProcessGroup>& group) {
  // Tied and untied, norms in the attention, latents.
  for (const std::string family : {"llama_mha", "qwen3", "deepseek_v2"}) {
    std::map<Trainable, std::vector<at::Tensor>> plain;
    for (const Trainable trainable : {Trainable::attention, Trainable::all})
      plain[trainable] = weights_after_5({0, 8, false, trainable}, single_process(), family);
    for (const Variant& variant : variants()) {
      SCOPED_TRACE(testing::Message() << family << ", ZeRO " << variant.zero << ", micro-batch " << variant.micro_batch
                                      << ", recompute " << variant.recompute << ", all "
                                      << (variant.trainable == Trainable::all));
      expect_near(weights_after_5(variant, group, family), plain[variant.trainable], 1e-12);
    }
  }
}

class EveryWorld : public testing::TestWithParam<int> {};

TEST_P(EveryWorld, ZeroLevelsAccumulationAndRecomputationGiveTheSameWeights) {
  if (GetParam() == 1) return expect_same_weights(single_process());
  if (test_rank() >= 0) return expect_same_weights(join_test_processes());
  const TempFolder folder;
  run_processes(GetParam(), folder.path());
}

INSTANTIATE_TEST_SUITE_P(Distributed, EveryWorld, testing::Values(1, 2, 4));

TEST(Distributed, SamplesThatDoNotDivideAreSharedOut) {
  if (test_rank() < 0) {
    const TempFolder folder;
    return run_processes(3, folder.path());
  }
  const auto group = join_test_processes();
  const auto run_of = [](const std::shared_ptr<ProcessGroup>& processes) {
    TrainRecipe recipe = tiny_recipe();
    recipe.batch = 7;  // 2, 2 and 3 samples, in parts of 2
    recipe.micro_batch = 2;
    TinyRun run(recipe, {.compute = at::kDouble, .zero = {2}}, processes);
    run.steps(3);
    return run.weights();
  };
  expect_near(run_of(group), run_of(single_process()), 1e-12);
}

TEST(Distributed, ResumesToTheBitAtTheSameNumberOfProcesses) {
  if (test_rank() < 0) {
    const TempFolder folder;
    return run_processes(2, folder.path());
  }
  const auto group = join_test_processes();
  for (const int zero : {0, 1, 2, 3}) {
    const fs::path states = test_folder() / ("states" + std::to_string(zero));
    const TrainedModel::Options options = {.compute = at::kFloat, .zero = {zero}};
    TinyRun straight(tiny_recipe(), options, group), first(tiny_recipe(), options, group),
        second(tiny_recipe(), options, group);
    straight.steps(6);
    first.steps(3);
    first.save(states);
    ASSERT_TRUE(second.trainer.resume(states));
    second.steps(3);
    expect_equal(second.weights(), straight.weights());
  }
}

/// Two steps more at every number of processes in turn.
TEST(Distributed, ResumesAtOtherNumbersOfProcesses) {
  const auto recipe = [] {
    TrainRecipe r = tiny_recipe();
    r.batch = 12;
    return r;
  };
  for (const int zero : {0, 3}) {
    const TrainedModel::Options options = {.compute = at::kFloat, .zero = {zero}};
    if (test_rank() >= 0) {
      if (std::getenv("CINCH_TEST_ARGUMENT") != std::to_string(zero)) continue;
      TinyRun run(recipe(), options, join_test_processes());
      run.trainer.resume(test_folder() / "states");
      run.steps(2);
      return run.save(test_folder() / "states");
    }
    const TempFolder folder;
    for (const int world : {4, 2, 1, 3}) run_processes(world, folder.path(), std::to_string(zero));
    TinyRun straight(recipe(), options), resumed(recipe(), options);
    straight.steps(8);
    ASSERT_TRUE(resumed.trainer.resume(folder / "states"));
    EXPECT_EQ(resumed.trainer.steps_done(), 8);
    expect_near(resumed.weights(), straight.weights(), 1e-6);
  }
}

}  // namespace
}  // namespace cinch
