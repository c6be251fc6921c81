#include "train/planning/activation_bytes.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "model/decoder_layer.h"
#include "tests/model/golden.h"
#include "tests/model/latent_model.h"
#include "tests/train/tensor_bytes.h"

namespace cinch {
namespace {

struct Measured {
  int64_t kept = 0, backward = 0, forward = 0, weight_gradients = 0;
};

/// What the layer's passes hold, counted where tensors get their memory.
Measured measure(const ModelConfig& config, const ModelFamily& family, int64_t number, const ActivationShape& shape,
                 at::ScalarType type) {
  at::set_num_threads(1);  // of which each has buffers of its own in ATen's kernels
  std::map<std::string, at::Tensor> weights;
  for (const WeightSpec& spec : family.weights(config)) {
    if (spec.layer != number) continue;
    at::Tensor weight = (at::randn(spec.shape) * 0.1).to(type);
    if (spec.attention ? shape.trains_attention : shape.trains_trunk) weight.requires_grad_(true);
    weights[spec.name] = weight;
  }
  const DecoderLayer layer(
      config, number, family.read_layer(config, number, [&](const std::string& name) { return weights.at(name); }));
  const at::Tensor given = at::randn({shape.samples, shape.window, config.hidden_size}).to(type);
  Measured measured;
  {
    const TensorBytes bytes;
    const at::Tensor input = given.clone().requires_grad_(true);
    const at::Tensor output = layer.forward(input), gradient = at::ones_like(output);
    measured.kept = bytes.held() - 2 * static_cast<int64_t>(output.nbytes());
    const int64_t before = bytes.held();
    torch::autograd::backward({output}, {gradient});
    measured.backward = bytes.most() - before;
    for (const auto& [name, weight] : weights) {
      if (weight.grad().defined()) measured.weight_gradients += static_cast<int64_t>(weight.grad().nbytes());
    }
  }
  const at::NoGradGuard no_grad;
  const TensorBytes bytes;
  layer.forward(given);
  measured.forward = bytes.most();
  return measured;
}

struct Case {
  std::string model;
  std::optional<LatentSizes> latent;
};
void PrintTo(const Case& test_case, std::ostream* stream) { *stream << test_case.model; }

std::vector<Case> cases() {
  std::vector<Case> list;
  for (const GoldenCase& family : golden_families()) list.push_back({family.name, {}});
  for (const char* model : {"llama_gqa", "qwen2", "qwen3", "mistral"}) {
    list.push_back({model, LatentSizes{.rank = 48, .nope = 8, .rotary = 4, .value = 16}});  // expanded
    list.push_back({model, LatentSizes{.rank = 48, .nope = 16, .rotary = 8, .value = 16}});
    list.push_back({model, LatentSizes{.rank = 6, .nope = 12, .rotary = 4, .value = 16}});  // absorbed
  }
  return list;
}

class ActivationBytesOf : public testing::TestWithParam<Case> {};

TEST_P(ActivationBytesOf, IsWhatAutogradKeeps) {
  const auto source = GoldenModel({GetParam().model}).open();
  ModelConfig config = source->config();
  if (GetParam().latent) {
    for (AttentionSpec& spec : config.layers) spec = latent_spec(spec, *GetParam().latent);
  }
  for (const auto& [type, bytes] : {std::pair{at::kFloat, 4}, {at::kBFloat16, 2}, {at::kDouble, 8}}) {
    for (const bool all : {false, true}) {
      for (int64_t layer = 0; layer < config.n_layers; ++layer) {
        SCOPED_TRACE(fmt::format("{} bytes, {}, layer {}", bytes, all ? "all" : "attention", layer));
        const ActivationShape shape = {.samples = 2,
                                       .window = 600,  // more than a block of any kernel
                                       .compute_bytes = bytes,
                                       .work_bytes = std::max(4, bytes),
                                       .trains_trunk = all};
        const LayerActivations planned = layer_activations(config, layer, shape);
        const Measured found = measure(config, source->family(), layer, shape, type);
        const auto kept = static_cast<double>(found.kept);
        EXPECT_NEAR(static_cast<double>(planned.kept), kept, 0.001 * kept);
        EXPECT_GE(planned.backward + found.weight_gradients, found.backward);
        EXPECT_GE(1.25 * static_cast<double>(planned.forward), static_cast<double>(found.forward));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, ActivationBytesOf, testing::ValuesIn(cases()), [](const auto& param_info) {
  return fmt::format("{}_{}", param_info.param.model, param_info.index);
});

TEST(ActivationBytes, OnCudaSomeTypesNeedWholeScores) {
  AttentionSpec spec = {.hidden_size = 512, .n_heads = 8, .n_kv_heads = 2, .head_dim = 64};
  ActivationShape shape = {.samples = 1, .window = 1024, .compute_bytes = 2, .on_cpu = false};
  EXPECT_FALSE(holds_probabilities(spec, shape));
  spec.window = 100;
  EXPECT_FALSE(holds_probabilities(spec, shape));
  shape.compute_bytes = 4;  // the memory-efficient form does not share heads
  EXPECT_TRUE(holds_probabilities(spec, shape));
  spec.n_kv_heads = 8;
  EXPECT_FALSE(holds_probabilities(spec, shape));
  spec.softcap = 50;
  EXPECT_TRUE(holds_probabilities(spec, shape));
}

}  // namespace
}  // namespace cinch
