// Gradients of decoder layers, which uptraining needs, against finite differences in fp64.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include "model/decoder_layer.h"
#include "tests/model/golden.h"
#include "tests/model/latent_model.h"

namespace cinch {
namespace {

std::vector<at::Tensor*> trained(LayerWeights& weights) {
  std::vector<at::Tensor*> list = {&weights.mlp.down_proj, &weights.mlp.gate_proj, &weights.input_norm,
                                   &weights.post_attention_norm};
  if (auto* grouped = std::get_if<GroupedQueryWeights>(&weights.attention)) {
    list.insert(list.end(), {&grouped->q_proj, &grouped->k_proj, &grouped->v_proj, &grouped->o_proj});
    if (grouped->q_norm.defined()) list.insert(list.end(), {&grouped->q_norm, &grouped->k_norm});
  } else {
    auto& latent = std::get<LatentWeights>(weights.attention);
    list.insert(list.end(), {&latent.q_proj, &latent.kv_a_proj, &latent.kv_b_proj, &latent.o_proj});
    if (latent.kv_a_norm.defined()) list.push_back(&latent.kv_a_norm);
  }
  return list;
}

void expect_gradients(const ModelConfig& config, LayerWeights weights) {
  at::manual_seed(2);
  const at::Tensor h = at::randn({2, 11, config.hidden_size}, at::kDouble);
  const at::Tensor direction = at::randn({2, 11, config.hidden_size}, at::kDouble);
  const auto loss = [&](const LayerWeights& w) {
    return (DecoderLayer(config, 0, w).forward(h, 0, 0, nullptr) * direction).sum();
  };
  const std::vector<at::Tensor*> tensors = trained(weights);
  for (at::Tensor* tensor : tensors) tensor->set_requires_grad(true);
  loss(weights).backward();
  for (size_t i = 0; i < tensors.size(); ++i) {
    at::Tensor* tensor = tensors[i];
    ASSERT_TRUE(tensor->grad().defined()) << i;
    const at::Tensor step = at::randn_like(*tensor).detach();
    const double slope = (tensor->grad() * step).sum().item<double>();
    const at::NoGradGuard no_grad;
    const at::Tensor kept = *tensor;
    constexpr double kStep = 1e-6;
    *tensor = kept + kStep * step;
    const double up = loss(weights).item<double>();
    *tensor = kept - kStep * step;
    const double down = loss(weights).item<double>();
    *tensor = kept;
    EXPECT_NEAR(slope, (up - down) / (2 * kStep), 1e-5 * std::max(1.0, std::abs(slope))) << "tensor " << i;
  }
}

class DecoderGradient : public testing::TestWithParam<GoldenCase> {};

TEST_P(DecoderGradient, EqualsFiniteDifferences) {
  const auto source = GoldenModel(GetParam()).open();
  expect_gradients(source->config(), source->family().read_layer(source->config(), 0, source->reader(at::kDouble)));
}

TEST_P(DecoderGradient, EqualsFiniteDifferencesInLatents) {
  const auto source = GoldenModel(GetParam()).open();
  if (source->family().attention_kind() == AttentionKind::latent) return;
  const LatentModel model = with_latent_layers(*source, {{0, {.rank = 13, .nope = 6, .rotary = 4, .value = 5}}});
  LayerWeights weights = source->family().read_layer(source->config(), 0, source->reader(at::kDouble));
  weights.attention = model.latent.at(0);
  expect_gradients(model.config, std::move(weights));
}

INSTANTIATE_TEST_SUITE_P(Families, DecoderGradient, testing::ValuesIn(golden_families()),
                         [](const auto& param_info) { return param_info.param.name; });

}  // namespace
}  // namespace cinch
