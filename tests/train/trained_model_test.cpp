#include "train/trained_model.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include "core/errors.h"
#include "model/decoder_model.h"
#include "tests/model/golden.h"
#include "tests/model/latent_model.h"
#include "tests/train/tiny_run.h"

namespace cinch {
namespace {

at::Tensor some_ids(int64_t vocabulary, int64_t batch = 2, int64_t tokens = 12) {
  at::manual_seed(4);
  return at::randint(vocabulary, {batch, tokens}, at::kLong);
}

class TrainedModelOf : public testing::TestWithParam<GoldenCase> {};

TEST_P(TrainedModelOf, ComputesTheModel) {
  const auto source = GoldenModel(GetParam()).open();
  TrainedModel model(source, {.compute = at::kDouble});
  const at::Tensor ids = some_ids(model.config().vocab_size);
  const FinalStates states = model.forward({ids});
  at::Tensor logits = at::linear(states.hidden, states.head);
  if (model.config().final_logit_softcap > 0)
    logits = at::tanh(logits / model.config().final_logit_softcap) * model.config().final_logit_softcap;
  EXPECT_LT(relative_difference(logits, DecoderModel(source, at::kDouble).forward(ids)), 1e-12);
}

/// Gradients of the sum of squares of all final states, as the whole graph at once gives them.
NamedTensors plain_gradients(ModelSource& source, const at::Tensor& ids) {
  const ModelConfig& config = source.config();
  NamedTensors leaves;
  for (const WeightSpec& spec : source.family().weights(config))
    leaves[spec.name] = source.tensor(spec.name, at::kDouble).clone().requires_grad_(true);
  const auto read = [&](const std::string& name) { return leaves.at(name); };
  at::Tensor h = ModelTrunk(config, source.family(), read).embed(ids);
  for (int64_t layer = 0; layer < config.n_layers; ++layer)
    h = DecoderLayer(config, layer, source.family().read_layer(config, layer, read)).forward(h);
  rms_norm(h, read(source.family().final_norm_name()), config.rms_norm_eps, config.norm_offset)
      .square()
      .sum()
      .backward();
  NamedTensors gradients;
  for (const auto& [name, leaf] : leaves) {
    if (leaf.grad().defined()) gradients[name] = leaf.grad();
  }
  return gradients;
}

TEST_P(TrainedModelOf, GradientsUnitByUnitAreThoseOfTheWholeGraph) {
  const auto source = GoldenModel(GetParam()).open();
  const at::Tensor ids = some_ids(source->config().vocab_size);
  const NamedTensors plain = plain_gradients(*source, ids);
  for (const Trainable trainable : {Trainable::attention, Trainable::all}) {
    for (const bool recompute : {false, true}) {
      TrainedModel model(source, {.trainable = trainable, .compute = at::kDouble, .recompute = recompute});
      model.accumulate(
          {ids}, nullptr, [](const FinalStates& states) { return states.hidden.square().sum(); }, true);
      model.finish_reductions();
      for (const Parameter& parameter : model.parameters()) {
        const WeightUnit& unit = model.units()[parameter.unit];
        const at::Tensor found = unit.entry(unit.gradient(), parameter.entry);
        const auto expected = plain.find(parameter.name);
        if (expected == plain.end()) {
          EXPECT_EQ(found.abs().max().item<double>(), 0) << parameter.name;
        } else {
          EXPECT_LT(relative_difference(found, expected->second), 1e-12) << parameter.name;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, TrainedModelOf, testing::ValuesIn(golden_families()),
                         [](const auto& param_info) { return param_info.param.name; });

TEST(TrainedModel, AllMeansEveryWeight) {
  const auto source = GoldenModel({"llama_mha"}).open();  // tied
  const TrainedModel model(source, {.trainable = Trainable::all, .compute = at::kDouble});
  EXPECT_EQ(model.parameters().size(), source->family().weights(source->config()).size());
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
  EXPECT_EQ(Teacher(source, student).own_bytes(), attention);
  EXPECT_EQ(Teacher(source, all).own_bytes(), everything);
  const Teacher teacher(source, student);
  for (const WeightSpec& spec : source->family().weights(source->config()))
    EXPECT_TRUE(teacher.has(spec.name, spec.shape));
  EXPECT_FALSE(teacher.has("model.layers.0.self_attn.q_proj.weight", {1, 2}));
  EXPECT_FALSE(teacher.has("model.layers.0.self_attn.kv_a_proj_with_mqa.weight", {24, 64}));
  TrainedModel runs(student_source, {});
  const at::Tensor ids = some_ids(96);
  const FinalStates states = runs.forward({ids}, &teacher);
  EXPECT_LT(relative_difference(at::linear(states.teacher_hidden, states.teacher_head),
                                DecoderModel(source, at::kFloat).forward(ids)),
            1e-6);
  EXPECT_LT(relative_difference(at::linear(states.hidden, states.head),
                                DecoderModel(student_source, at::kFloat).forward(ids)),
            1e-6);
  EXPECT_NO_THROW(Teacher(GoldenModel({"deepseek_v2"}).open(), student));  // of the same sizes: any model may teach
}

TrainRecipe healing(bool local) {
  return {.stages = {{.local = local,
                      .loss = {0, 1},
                      .learning_rates = {1e-2, 1e-2, 0},
                      .schedule = {.steps = 40, .warmup_steps = 2}}},
          .batch = 8,
          .micro_batch = 8};
}

TEST(Training, BringsARandomStudentNearer) {
  const TempFolder folder;
  const auto source = GoldenModel({"llama_gqa"}).open();
  const auto student_source = random_student(folder / "student");
  for (const bool local : {false, true}) {
    TrainedModel student(student_source, {.recompute = true});
    const Teacher teacher(source, student);
    const TokenSamples samples(arbitrary_text(129, 96), 16, 1);
    Trainer trainer(student, &teacher, samples, healing(local));
    double first = 0, last = 0;
    while (!trainer.done()) {
      const StepReport step = trainer.step();
      last = step.loss;
      if (step.step == 1) first = last;
    }
    EXPECT_LT(last, 0.3 * first) << local;
  }
}

/// The same gradients whatever the parts, and those of a loss written out for one layer.
TEST(Training, LocalLossIsOfEachLayersAttentionAlone) {
  const TempFolder folder;
  const auto source = GoldenModel({"llama_gqa"}).open();
  const auto student_source = random_student(folder / "student");
  const at::Tensor ids = some_ids(96, 4, 12);
  TrainedModel whole(student_source, {.compute = at::kDouble}), parts(student_source, {.compute = at::kDouble});
  const Teacher teacher(source, whole);
  const at::Tensor weights = at::full({4}, 0.25, at::kDouble);
  const double error = whole.accumulate_local({ids}, teacher, weights, true).item<double>();
  double sum = 0;
  for (int64_t i = 0; i < 4; ++i)
    sum += parts.accumulate_local({ids.narrow(0, i, 1)}, teacher, weights.narrow(0, i, 1), i == 3).item<double>();
  EXPECT_NEAR(sum, error, 1e-12 * error);
  for (size_t u = 0; u < whole.units().size(); ++u) {
    if (whole.units()[u].empty()) continue;
    EXPECT_LT(relative_difference(parts.units()[u].gradient(), whole.units()[u].gradient()), 1e-12);
  }

  const auto layer_of = [&](ModelSource& model, int64_t layer) {
    return DecoderLayer(model.config(), layer,
                        model.family().read_layer(model.config(), layer, [&](const std::string& name) {
                          return model.tensor(name, at::kDouble);
                        }));
  };
  at::Tensor h = ModelTrunk(*source, at::kDouble, at::kCPU).embed(ids);
  double expected = 0;
  for (int64_t layer = 0; layer < source->config().n_layers; ++layer) {
    const DecoderLayer original = layer_of(*source, layer);
    const at::Tensor x = original.attention_input(h), aim = original.attention().forward(x, 0, 0, nullptr);
    const at::Tensor off = layer_of(*student_source, layer).attention().forward(x, 0, 0, nullptr) - aim;
    expected += (off.square().sum({1, 2}) / aim.square().sum({1, 2})).mean().item<double>();
    h = original.forward(h);
  }
  EXPECT_NEAR(error, expected / static_cast<double>(source->config().n_layers), 1e-12);
}

}  // namespace
}  // namespace cinch
