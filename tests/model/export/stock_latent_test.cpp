#include "model/export/stock_latent.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/errors.h"
#include "model/decoder_model.h"
#include "model/export/rounded_model.h"
#include "tests/model/golden.h"
#include "tests/model/latent_model.h"

namespace cinch {
namespace {

constexpr LatentSizes kSizes = {.rank = 21, .nope = 6, .rotary = 8, .value = 10};

/// Golden models with every layer latent.
class StockLatent : public testing::Test {
 protected:
  std::shared_ptr<ModelSource> make(const std::string& family, const std::vector<LatentSizes>& sizes) {
    const auto source = GoldenModel({family}).open();
    std::map<int64_t, LatentSizes> layers;
    for (int64_t layer = 0; layer < source->config().n_layers; ++layer)
      layers[layer] = sizes[static_cast<size_t>(layer) % sizes.size()];
    LatentModel model = with_latent_layers(*source, layers);
    // Powers of two, which the class computes without rounding.
    for (AttentionSpec& spec : model.config.layers) spec.rope_inv_freq = {1.0, 0.5, 0.25, 0.125};
    write_latent_model(model, *source, {.output = folder_ / family, .format = "native", .dtype = "f64"});
    return ModelSource::open(folder_ / family);
  }

  static at::Tensor logits(const std::shared_ptr<ModelSource>& source, at::ScalarType dtype = at::kDouble) {
    const at::Tensor ids = at::arange(1, 31, at::kLong).unsqueeze(0);
    return DecoderModel(source, dtype).forward(ids);
  }

 private:
  TempFolder folder_;
};

TEST_F(StockLatent, ComputesTheSameInFp64) {
  for (const char* family : {"llama_gqa", "llama_mha", "llama_wide_heads"}) {
    const auto native = make(family, {kSizes});
    const auto stock = as_stock_latent(native, {});
    EXPECT_EQ(stock->config().family, "deepseek_v3");
    EXPECT_FALSE(stock->config().tie_word_embeddings);
    EXPECT_LT(relative_difference(logits(stock), logits(native)), 1e-9) << family;
  }
}

TEST_F(StockLatent, EveryOptionKeepsTheFunction) {
  const auto native = make("llama_gqa", {kSizes});
  const at::Tensor expected = logits(native);
  const std::vector<StockLatentOptions> options = {
      {.latent_norm_eps = 1e-5}, {.rms_norm_eps = 3e-6}, {.poison = true},
      {.least_nope_dim = 9},     {.rank = 32},           {.biases = false, .stretches_linear = true}};
  for (size_t i = 0; i < options.size(); ++i)
    EXPECT_LT(relative_difference(logits(as_stock_latent(native, options[i])), expected), 1e-9) << "options " << i;
  // The weight of the norm is smaller by 2^15 here, and with it how well it is neutral.
  EXPECT_LT(relative_difference(logits(as_stock_latent(native, {.split_scale = true})), expected), 1e-2);
}

TEST_F(StockLatent, LinearFrequenciesAreStretchedWhereTheRuntimeDoes) {
  const auto source = GoldenModel({"llama_gqa"}).open();
  LatentModel model = with_latent_layers(*source, {{0, kSizes}, {1, kSizes}});
  for (AttentionSpec& spec : model.config.layers) spec.rope_inv_freq = {0.5, 0.25, 0.125, 0.0625};
  const TempFolder folder;
  write_latent_model(model, *source, {.output = folder / "in", .format = "native", .dtype = "f64"});
  const auto native = ModelSource::open(folder / "in");
  for (const bool stretches : {false, true}) {
    const auto stock = as_stock_latent(native, {.stretches_linear = stretches});
    EXPECT_EQ(stock->config().layers[0].rope.type, "linear");
    // Frequencies through a base in single precision.
    EXPECT_LT(relative_difference(logits(stock), logits(native)), 1e-5);
  }
}

TEST_F(StockLatent, RanksOfTheirOwnArePadded) {
  LatentSizes narrow = kSizes;
  narrow.rank = 13;
  const auto native = make("llama_gqa", {kSizes, narrow});
  const auto stock = as_stock_latent(native, {});
  EXPECT_EQ(stock->config().layers[1].kv_lora_rank, 21);
  EXPECT_LT(relative_difference(logits(stock), logits(native)), 1e-9);
}

TEST_F(StockLatent, HalfPrecisionNeedsTheSplitScale) {
  const auto native = make("llama_gqa", {kSizes});
  const at::Tensor expected = logits(native, at::kFloat);
  const auto error = [&](bool split) {
    const TempFolder folder;
    const auto stock = as_stock_latent(native, {.split_scale = split});
    const auto writer = ModelWriter::create(stock->config(), *stock, {.output = folder / "out", .dtype = "f16"});
    for (const WeightSpec& weight : stock->family().weights(stock->config())) writer->copy(weight.name);
    writer->commit();
    return relative_difference(logits(ModelSource::open(folder / "out"), at::kFloat), expected);
  };
  EXPECT_LT(error(true), 0.05);
  EXPECT_FALSE(error(false) < 10 * error(true));  // NaN: 2^20 is no half
}

TEST_F(StockLatent, BiasesOfKeysAndValuesMoveToWhereTheClassHasThem) {
  const auto source = GoldenModel({"qwen2"}).open();
  std::map<int64_t, LatentSizes> layers;
  for (int64_t layer = 0; layer < source->config().n_layers; ++layer) layers[layer] = kSizes;
  LatentModel model = with_latent_layers(*source, layers);
  for (auto& [layer, weights] : model.latent) weights.q_bias.zero_();
  for (AttentionSpec& spec : model.config.layers) spec.rope_inv_freq = {1.0, 0.5, 0.25, 0.125};
  const TempFolder folder;
  write_latent_model(model, *source, {.output = folder / "in", .format = "native", .dtype = "f64"});
  const auto native = ModelSource::open(folder / "in");
  const auto stock = as_stock_latent(native, {});
  EXPECT_TRUE(stock->config().layers[0].down_bias);
  // The first tokens: the source's windows of 9 do not end before them.
  const at::Tensor a = logits(stock).slice(1, 0, 9), b = logits(native).slice(1, 0, 9);
  EXPECT_LT(relative_difference(a, b), 1e-9);
  const auto bare = as_stock_latent(native, {.biases = false});
  EXPECT_GT(relative_difference(logits(bare).slice(1, 0, 9), b), 1e-3);
}

TEST_F(StockLatent, RefusesWhatOneClassCannotHold) {
  const auto source = GoldenModel({"llama_gqa"}).open();
  EXPECT_THROW(as_stock_latent(source, {}), UnsupportedError);
  LatentModel mixed = with_latent_layers(*source, {{0, kSizes}, {1, kSizes}});
  mixed.config.layers[1].rope_inv_freq[2] *= 1.5;
  const TempFolder folder;
  write_latent_model(mixed, *source, {.output = folder / "in", .format = "native"});
  EXPECT_THROW(as_stock_latent(ModelSource::open(folder / "in"), {}), UnsupportedError);
}

TEST(RoundedModel, HasTheNoiseOfItsType) {
  const auto source = GoldenModel({"llama_gqa"}).open();  // whose weights lie on bf16's grid
  const std::string name = "model.layers.0.mlp.up_proj.weight";
  const at::Tensor exact = source->tensor(name, at::kFloat);
  const auto error = [&](Dtype dtype, bool blocks) {
    const at::Tensor found = as_rounded(source, dtype, blocks)->tensor(name, at::kFloat);
    return ((found - exact).norm() / exact.norm()).item<double>();
  };
  EXPECT_NEAR(error(Dtype::kBF16, false), 0.0016, 0.0008);
  EXPECT_NEAR(error(Dtype::kF16, false), 0.0002, 0.0001);
  EXPECT_LT(error(Dtype::kF32, false), 1e-7);
  const at::Tensor norm = source->tensor("model.norm.weight", at::kFloat);
  EXPECT_TRUE(at::equal(as_rounded(source, Dtype::kBF16, false)->tensor("model.norm.weight", at::kFloat), norm));
}

}  // namespace
}  // namespace cinch
