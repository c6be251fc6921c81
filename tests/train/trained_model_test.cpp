#include "train/trained_model.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include "core/errors.h"
#include "model/decoder_model.h"
#include "tests/model/golden.h"
#include "tests/model/latent_model.h"
#include "train/adamw.h"
#include "train/linear_cross_entropy_kd.h"

namespace cinch {
namespace {

at::Tensor some_ids(int64_t vocabulary, int64_t batch = 2, int64_t tokens = 12) {
  at::manual_seed(4);
  return at::randint(vocabulary, {batch, tokens}, at::kLong);
}

class TrainedModelOf : public testing::TestWithParam<GoldenCase> {};

TEST_P(TrainedModelOf, ComputesTheModel) {
  const auto source = GoldenModel(GetParam()).open();
  const TrainedModel model(source, {.compute = at::kDouble});
  const at::Tensor ids = some_ids(model.config().vocab_size);
  at::Tensor logits = at::linear(model.hidden(ids), model.head());
  if (model.config().final_logit_softcap > 0)
    logits = at::tanh(logits / model.config().final_logit_softcap) * model.config().final_logit_softcap;
  EXPECT_LT(relative_difference(logits.detach(), DecoderModel(source, at::kDouble).forward(ids)), 1e-12);
}

TEST_P(TrainedModelOf, RecomputationGivesTheSameGradients) {
  const auto source = GoldenModel(GetParam()).open();
  const at::Tensor ids = some_ids(source->config().vocab_size);
  std::vector<std::vector<at::Tensor>> gradients;
  for (const bool recompute : {false, true}) {
    const TrainedModel model(source, {.compute = at::kDouble, .recompute = recompute});
    model.hidden(ids).square().sum().backward();
    gradients.emplace_back();
    for (const Parameter& parameter : model.parameters()) {
      EXPECT_TRUE(parameter.attention);
      gradients.back().push_back(parameter.value.grad());
    }
  }
  for (size_t i = 0; i < gradients[0].size(); ++i)
    EXPECT_LT(relative_difference(gradients[1][i], gradients[0][i]), 1e-12) << i;
}

INSTANTIATE_TEST_SUITE_P(Families, TrainedModelOf, testing::ValuesIn(golden_families()),
                         [](const auto& param_info) { return param_info.param.name; });

TEST(TrainedModel, AllMeansEveryWeight) {
  const auto source = GoldenModel({"llama_mha"}).open();  // tied
  const TrainedModel model(source, {.trainable = Trainable::all, .compute = at::kDouble});
  EXPECT_EQ(model.parameters().size(), source->family().weights(source->config()).size());
  at::linear(model.hidden(some_ids(96)), model.head()).square().sum().backward();
  for (const Parameter& parameter : model.parameters()) EXPECT_TRUE(parameter.value.grad().defined()) << parameter.name;
}

/// llama_gqa with random latents: a student that knows nothing of its source.
std::shared_ptr<ModelSource> random_student(const std::filesystem::path& folder) {
  const auto source = GoldenModel({"llama_gqa"}).open();
  const LatentSizes sizes = {.rank = 16, .nope = 8, .rotary = 8, .value = 8};
  write_latent_model(with_latent_layers(*source, {{0, sizes}, {1, sizes}}), *source,
                     {.output = folder, .format = "native", .dtype = "f32"});
  return ModelSource::open(folder);
}

TEST(Teacher, SharesWhatTheStudentKeeps) {
  const TempFolder folder;
  const auto source = GoldenModel({"llama_gqa"}).open();
  const auto student_source = random_student(folder / "student");
  const TrainedModel student(student_source, {}), all(student_source, {.trainable = Trainable::all});
  int64_t attention = 0, everything = 0;
  for (const WeightSpec& spec : source->family().weights(source->config())) {
    const int64_t bytes = source->tensor(spec.name, at::kFloat).numel() * 4;
    everything += bytes;
    if (spec.attention) attention += bytes;
  }
  EXPECT_EQ(Teacher(source, student, at::kFloat, at::kCPU).own_bytes(), attention);
  EXPECT_EQ(Teacher(source, all, at::kFloat, at::kCPU).own_bytes(), everything);
  const Teacher teacher(source, student, at::kFloat, at::kCPU);
  const at::Tensor ids = some_ids(96);
  const at::Tensor logits = at::linear(teacher.hidden(ids), teacher.head());
  EXPECT_FALSE(logits.requires_grad());
  EXPECT_LT(relative_difference(logits, DecoderModel(source, at::kFloat).forward(ids)), 1e-6);
  const auto other = GoldenModel({"deepseek_v2"}).open();
  EXPECT_NO_THROW(Teacher(other, student, at::kFloat, at::kCPU));  // of the same vocabulary: any model may teach
}

TEST(Training, DistillationBringsARandomStudentNearer) {
  const TempFolder folder;
  const auto source = GoldenModel({"llama_gqa"}).open();
  const TrainedModel student(random_student(folder / "student"), {.recompute = true});
  const Teacher teacher(source, student, at::kFloat, at::kCPU);
  std::vector<at::Tensor> values;
  for (const Parameter& parameter : student.parameters()) values.push_back(parameter.value);
  AdamW optimizer({{values, 1e-2, 0.0}}, {});
  const at::Tensor ids = some_ids(96, 8, 16), targets = at::zeros({8 * 16}, at::kLong);
  double first = 0, last = 0;
  for (int step = 0; step < 40; ++step) {
    optimizer.zero_grad();
    const LossValue loss = linear_cross_entropy_kd({.hidden = student.hidden(ids).flatten(0, 1),
                                                    .head = student.head(),
                                                    .teacher_hidden = teacher.hidden(ids).flatten(0, 1),
                                                    .teacher_head = teacher.head(),
                                                    .targets = targets},
                                                   {});
    loss.total.backward();
    optimizer.clip(1.0);
    optimizer.step(1.0);
    last = loss.distillation.item<double>();
    if (step == 0) first = last;
  }
  EXPECT_LT(last, 0.3 * first);
}

}  // namespace
}  // namespace cinch
