// Training on a CUDA device equals training on the CPU.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <torch/csrc/distributed/c10d/FileStore.hpp>

#include <cmath>

#include "core/plugin.h"
#include "tests/support/cuda_device.h"
#include "tests/train/tiny_run.h"
#include "train/cuda/nccl_abi.h"
#include "train/linear_cross_entropy_kd.h"

namespace cinch {
namespace {

class CudaTraining : public CudaTest {};

TrainedModel::Options options_on(at::Device device, at::ScalarType compute) {
  return {.compute = compute, .device = device};
}

TEST_F(CudaTraining, StepsEqualTheCpus) {
  for (const char* family : {"llama_gqa", "qwen3", "gemma2", "deepseek_v3"}) {
    TinyRun cpu(tiny_recipe(), options_on(at::kCPU, at::kDouble), single_process(), family);
    cpu.steps(4);
    for (const int zero : {0, 1, 2, 3}) {
      for (const bool recompute : {false, true}) {
        TrainedModel::Options options = options_on(at::kCUDA, at::kDouble);
        options.zero.level = zero;
        options.recompute = recompute;
        TinyRun cuda(tiny_recipe(), options, single_process(), family);
        cuda.steps(4);
        expect_near(cuda.weights(), cpu.weights(), 1e-9);
      }
    }
  }
}

TEST_F(CudaTraining, EveryStageEqualsTheCpus) {
  TrainRecipe recipe = every_stage(4);
  recipe.guard.deviations = 0;
  TinyRun cpu(recipe, options_on(at::kCPU, at::kDouble)), cuda(recipe, options_on(at::kCUDA, at::kDouble));
  while (!cpu.trainer.done()) {
    const StepReport expected = cpu.trainer.step(), found = cuda.trainer.step();
    EXPECT_NEAR(found.loss, expected.loss, 1e-9 * expected.loss) << found.step;
    EXPECT_NEAR(found.gradient_norm, expected.gradient_norm, 1e-8 * expected.gradient_norm) << found.step;
    EXPECT_GT(found.loss, 0);
  }
  expect_near(cuda.weights(), cpu.weights(), 1e-8);
}

TEST_F(CudaTraining, NarrowTypesStayNear) {
  TrainRecipe recipe = tiny_recipe(8);
  recipe.stages.front().loss = {1, 0.5};
  TinyRun exact(recipe, options_on(at::kCPU, at::kDouble)), single(recipe, options_on(at::kCUDA, at::kFloat)),
      half(recipe, options_on(at::kCUDA, at::kBFloat16));
  while (!exact.trainer.done()) {
    const double expected = exact.trainer.step().loss;
    EXPECT_NEAR(single.trainer.step().loss, expected, 1e-5 * expected);
    EXPECT_NEAR(half.trainer.step().loss, expected, 1e-2 * expected);
  }
}

TEST_F(CudaTraining, StatesGoFromDeviceToDevice) {
  const TempFolder folder;
  TinyRun straight(tiny_recipe(), options_on(at::kCUDA, at::kDouble)),
      first(tiny_recipe(), options_on(at::kCUDA, at::kDouble));
  straight.steps(6);
  first.steps(3);
  first.save(folder / "states");
  TinyRun again(tiny_recipe(), options_on(at::kCUDA, at::kDouble)),
      cpu(tiny_recipe(), options_on(at::kCPU, at::kDouble));
  for (TinyRun* run : {&again, &cpu}) {
    ASSERT_TRUE(run->trainer.resume(folder / "states"));
    run->steps(3);
  }
  expect_near(again.weights(), straight.weights(), 1e-12);
  expect_near(cpu.weights(), straight.weights(), 1e-9);
}

TEST_F(CudaTraining, LossAndGradientsEqualThePlainOperations) {
  constexpr int64_t kTokens = 300, kWidth = 96, kVocabulary = 1001;
  at::manual_seed(5);
  const auto random = [&](int64_t rows) { return (at::randn({rows, kWidth}, at::kDouble) * 0.3).to(at::kCUDA); };
  LossInputs in{.hidden = random(kTokens).requires_grad_(true),
                .head = random(kVocabulary).requires_grad_(true),
                .teacher_hidden = random(kTokens),
                .teacher_head = random(kVocabulary),
                .targets = at::randint(kVocabulary, {kTokens}, at::kLong).to(at::kCUDA)};
  const LossValue found = linear_cross_entropy_kd(in, {.weights = {0.3, 0.7}, .chunk_bytes = 4 * kVocabulary * 8 * 7});
  found.total.backward();
  const at::Tensor hidden = in.hidden.grad().clone(), head = in.head.grad().clone();
  in.hidden.mutable_grad().reset();
  in.head.mutable_grad().reset();
  const at::Tensor student = at::log_softmax(at::linear(in.hidden, in.head), 1);
  const at::Tensor teacher = at::log_softmax(at::linear(in.teacher_hidden, in.teacher_head), 1);
  const at::Tensor plain =
      0.3 * at::nll_loss(student, in.targets) + 0.7 * at::kl_div(student, teacher, at::Reduction::Sum, true) / kTokens;
  plain.backward();
  EXPECT_NEAR(found.total.item<double>(), plain.item<double>(), 1e-10);
  EXPECT_LT((hidden - in.hidden.grad()).abs().max().item<double>(), 1e-10 * hidden.abs().max().item<double>());
  EXPECT_LT((head - in.head.grad()).abs().max().item<double>(), 1e-10 * head.abs().max().item<double>());
}

// The fused kernel against ATen's operations on the CPU: for fp32 in fp64, for narrow types in the same type, as logits
// are rounded to it.
TEST_F(CudaTraining, FusedLossEqualsThePlainOperations) {
  struct Case {
    at::ScalarType type;
    int64_t vocabulary;
    LossWeights weights;
    double softcap, tolerance;
    int64_t chunk_rows;
  };
  for (const Case& c : {Case{at::kFloat, 1001, {0.3, 0.7}, 0, 2e-6, 1000}, Case{at::kFloat, 4096, {0, 1}, 3, 2e-6, 7},
                        Case{at::kBFloat16, 4096, {0, 1}, 0, 6e-3, 1000},
                        Case{at::kBFloat16, 1001, {1, 0}, 0, 6e-3, 33}, Case{at::kHalf, 513, {1, 2}, 30, 2e-3, 64}}) {
    constexpr int64_t kTokens = 97, kWidth = 64;
    SCOPED_TRACE(testing::Message() << at::toString(c.type) << " " << c.vocabulary);
    at::manual_seed(6);
    const auto random = [&](int64_t rows, double size) {
      return (at::randn({rows, kWidth}) * size).to(c.type).to(at::kCUDA);
    };
    LossInputs in{.hidden = random(kTokens, 1).requires_grad_(true),
                  .head = random(c.vocabulary, 0.4).requires_grad_(true),
                  .teacher_hidden = random(kTokens, 1),
                  .teacher_head = random(c.vocabulary, 0.4),
                  .targets = at::randint(c.vocabulary, {kTokens}, at::kLong)};
    for (const int64_t ignored : {0, 50, 96}) in.targets[ignored] = kIgnoredTarget;
    LossInputs exact = in;
    for (at::Tensor* x : {&exact.hidden, &exact.head, &exact.teacher_hidden, &exact.teacher_head})
      *x = x->detach().to(at::kCPU, c.type == at::kFloat ? at::kDouble : c.type).requires_grad_(x->requires_grad());
    in.targets = in.targets.to(at::kCUDA);
    const LossOptions options = {
        .weights = c.weights,
        .softcap = c.softcap,
        .chunk_bytes = c.chunk_rows * 2 * c.vocabulary * static_cast<int64_t>(at::elementSize(c.type))};
    const LossValue found = linear_cross_entropy_kd(in, options), expected = linear_cross_entropy_kd(exact, options);
    found.total.backward();
    expected.total.backward();
    EXPECT_NEAR(found.total.item<double>(), expected.total.item<double>(), c.tolerance * expected.total.item<double>());
    EXPECT_LE(relative_difference(in.hidden.grad().cpu(), exact.hidden.grad()), c.tolerance);
    EXPECT_LE(relative_difference(in.head.grad().cpu(), exact.head.grad()), c.tolerance);
    EXPECT_EQ(in.hidden.grad()[50].abs().max().item<double>(), 0);

    const at::NoGradGuard no_grad;  // as held-out windows are measured
    EXPECT_NEAR(linear_cross_entropy_kd(in, options).total.item<double>(), found.total.item<double>(), 1e-6);
  }
}

// One GPU holds one process of NCCL: the plug-in and the operations that training asks for, alone.
TEST_F(CudaTraining, NcclSumsGathersAndScatters) {
  const TempFolder folder;
  const auto make =
      reinterpret_cast<decltype(&cinch_nccl_group)>(find_in_plugin("libcinch_nccl.so", "cinch_nccl_group"));
  c10::intrusive_ptr<c10d::Backend> group;
  make(c10::make_intrusive<c10d::FileStore>((folder / "store").string(), 1), 0, 1, std::chrono::seconds(60), &group);
  EXPECT_EQ(group->getBackendName(), "nccl");
  const auto options = at::TensorOptions(at::kCUDA);
  std::vector<at::Tensor> sums = {at::arange(6, options.dtype(at::kFloat))};
  group->allreduce(sums)->wait();
  at::Tensor whole = at::arange(6, options.dtype(at::kFloat)), share = at::zeros({6}, options.dtype(at::kFloat));
  group->_reduce_scatter_base(share, whole)->wait();
  at::Tensor gathered = at::zeros({24}, options.dtype(at::kByte)), bytes = whole.view(at::kByte);
  group->_allgather_base(gathered, bytes)->wait();
  const at::Tensor expected = at::arange(6, at::kFloat);
  EXPECT_TRUE(at::equal(sums[0].cpu(), expected));
  EXPECT_TRUE(at::equal(share.cpu(), expected));
  EXPECT_TRUE(at::equal(gathered.cpu().view(at::kFloat), expected));
  group->shutdown();
}

}  // namespace
}  // namespace cinch
