// Training on a device: every operation finds its tensors there, and the steps are those of the CPU.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/support/device/test_device.h"
#include "tests/train/tiny_run.h"

namespace cinch {
namespace {

TrainedModel::Options options_on(at::Device device) { return {.compute = at::kDouble, .device = device}; }

class TrainingOnADevice : public testing::TestWithParam<std::string> {};

TEST_P(TrainingOnADevice, StepsEqualTheCpus) {
  TinyRun cpu(tiny_recipe(), options_on(at::kCPU), single_process(), GetParam());
  cpu.steps(3);
  for (const int zero : {0, 3}) {
    for (const bool recompute : {false, true}) {
      TrainedModel::Options options = options_on(test_device());
      options.zero.level = zero;
      options.recompute = recompute;
      TinyRun device(tiny_recipe(), options, single_process(), GetParam());
      device.steps(3);
      std::vector<at::Tensor> weights = device.weights();
      for (at::Tensor& weight : weights) weight = weight.cpu();
      expect_near(weights, cpu.weights(), 1e-9);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, TrainingOnADevice,
                         testing::Values("llama_gqa", "qwen2", "qwen3", "gemma2", "deepseek_v3"),
                         [](const auto& given) { return given.param; });

TEST(StagesOnADevice, EqualTheCpus) {
  TrainRecipe recipe = every_stage(4);
  recipe.guard.deviations = 0;
  TinyRun cpu(recipe, options_on(at::kCPU)), device(recipe, options_on(test_device()));
  while (!cpu.trainer.done()) {
    const StepReport expected = cpu.trainer.step(), found = device.trainer.step();
    EXPECT_NEAR(found.loss, expected.loss, 1e-9 * expected.loss) << found.step;
    EXPECT_NEAR(found.gradient_norm, expected.gradient_norm, 1e-8 * expected.gradient_norm) << found.step;
  }
}

TEST(StatesOnADevice, GoOnThereAndOnTheCpu) {
  const TempFolder folder;
  TinyRun straight(tiny_recipe(), options_on(at::kCPU)), first(tiny_recipe(), options_on(test_device()));
  straight.steps(6);
  first.steps(3);
  first.save(folder / "states");
  for (const at::Device device : {at::Device(at::kCPU), test_device()}) {
    TinyRun again(tiny_recipe(), options_on(device));
    ASSERT_TRUE(again.trainer.resume(folder / "states"));
    again.steps(3);
    std::vector<at::Tensor> weights = again.weights();
    for (at::Tensor& weight : weights) weight = weight.cpu();
    expect_near(weights, straight.weights(), 1e-9);
  }
}

}  // namespace
}  // namespace cinch
