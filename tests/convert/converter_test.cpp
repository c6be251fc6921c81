#include "convert/converter.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "convert/partial_folder.h"
#include "core/digest.h"
#include "core/errors.h"
#include "model/decoder_model.h"
#include "tests/convert/tiny_model.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

using testing::HasSubstr;

ConversionRecipe recipe_for(const std::filesystem::path& ids, const std::string& target, const std::string& method) {
  ConversionRecipe recipe;
  parse_target(target, recipe);
  recipe.method = method;
  recipe.calibration = {{ids, 1.0}};
  recipe.calibration_tokens = 512;
  recipe.calibration_window = 32;
  return recipe;
}

std::map<std::string, std::string> folder_digests(const std::filesystem::path& folder) {
  std::map<std::string, std::string> digests;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file())
      digests[std::filesystem::relative(entry.path(), folder).string()] = sha256_hex_of_file(entry.path());
  }
  return digests;
}

at::Tensor logits_of(const std::filesystem::path& model) {
  const at::Tensor ids = at::arange(24, at::kLong).unsqueeze(0);
  return DecoderModel(ModelSource::open(model), at::kFloat).forward(ids);
}

class ConverterTest : public testing::Test {
 protected:
  void SetUp() override {
    write_tiny_model(model(), {});
    write_tiny_ids(ids(), 2000, 97);
  }
  std::filesystem::path model() const { return folder_ / "model"; }
  std::filesystem::path ids() const { return folder_ / "text.ids"; }
  std::filesystem::path out() const { return folder_ / "out"; }
  Json convert(const ConversionRecipe& recipe, const ConvertOptions& options) const {
    return convert_model(ModelSource::open(model()), recipe, options).json;
  }
  TempFolder folder_;
};

TEST_F(ConverterTest, WritesAModelOfTheSameClass) {
  const Json report = convert(recipe_for(ids(), "gqa:2", "mean"), {.output = {.output = out()}});
  EXPECT_DOUBLE_EQ(report["kv_ratio"].get<double>(), 0.5);
  EXPECT_EQ(report["layers"].size(), 2u);
  EXPECT_EQ(report["verification"]["tensors"], 8);
  EXPECT_LT(report["verification"]["max_abs_logit_difference"].get<double>(), 1e-4);
  EXPECT_GT(report["held_out"]["kl"].get<double>(), 0.0);
  const auto converted = ModelSource::open(out());
  EXPECT_EQ(converted->config().layers[0].n_kv_heads, 2);
  EXPECT_EQ(JsonObject::from_file(out() / "config.json").integer("num_key_value_heads"), 2);
  // Mean pooling by hand.
  const at::Tensor k =
      ModelSource::open(model())->tensor("model.layers.0.self_attn.k_proj.weight", at::kFloat).view({2, 2, 8, 32});
  EXPECT_TRUE(
      at::allclose(converted->tensor("model.layers.0.self_attn.k_proj.weight", at::kFloat), k.mean(1).view({16, 32})));
  EXPECT_TRUE(std::filesystem::exists(out() / "README.md"));
  EXPECT_FALSE(std::filesystem::exists(PartialFolder::path_for(out())));
}

TEST_F(ConverterTest, CinchJsonRecordsDigestsOfWhatWasWritten) {
  convert(recipe_for(ids(), "mqa", "mean"), {.output = {.output = out()}});
  const JsonObject record = JsonObject::from_file(out() / "cinch.json");
  const auto source = open_tensors(out());
  for (const TensorInfo& info : source->tensors())
    EXPECT_EQ(record.object("digests").string(info.name), xxh3_hex(source->read(info.name).bytes));
  EXPECT_EQ(record.object("source").object("files").object("model.safetensors").string("sha256"),
            sha256_hex_of_file(model() / "model.safetensors"));
  EXPECT_EQ(record.object("recipe").string("to"), "mqa");
}

TEST_F(ConverterTest, RunsTwiceToTheSameBytes) {
  const ConversionRecipe recipe = recipe_for(ids(), "gqa:2", "procrustes");
  convert(recipe, {.output = {.output = folder_ / "a" / "out"}});
  convert(recipe, {.output = {.output = folder_ / "b" / "out"}});
  EXPECT_EQ(folder_digests(folder_ / "a"), folder_digests(folder_ / "b"));
}

TEST_F(ConverterTest, AnExistingOutputNeedsForce) {
  const ConversionRecipe recipe = recipe_for(ids(), "gqa:2", "mean");
  std::filesystem::create_directory(out());
  write_text(out() / "precious", "work");
  EXPECT_THROW(convert(recipe, {.output = {.output = out()}}), UsageError);
  EXPECT_EQ(read_text(out() / "precious"), "work");
  convert(recipe, {.output = {.output = out(), .force = true}});
  EXPECT_FALSE(std::filesystem::exists(out() / "precious"));
  EXPECT_TRUE(std::filesystem::exists(out() / "model.safetensors"));
}

TEST_F(ConverterTest, RoundsToTheOutputTypeBeforeTheNextLayer) {
  const Json report = convert(recipe_for(ids(), "gqa:2", "mean"), {.output = {.output = out(), .dtype = "bf16"}});
  EXPECT_LT(report["verification"]["max_abs_logit_difference"].get<double>(), 1e-4);
  EXPECT_EQ(ModelSource::open(out())->tensors().find("model.embed_tokens.weight")->dtype, Dtype::kBF16);
}

TEST_F(ConverterTest, PartialLayersRoundTripInANativeFolder) {
  ConversionRecipe recipe = recipe_for(ids(), "mqa", "mean");
  recipe.layers = {1};
  const Json report = convert(recipe, {.output = {.output = out(), .format = "hdf5"}});
  EXPECT_EQ(report["layers"].size(), 1u);
  const auto converted = ModelSource::open(out());
  EXPECT_EQ(converted->config().layers[0].n_kv_heads, 4);
  EXPECT_EQ(converted->config().layers[1].n_kv_heads, 1);
  EXPECT_TRUE(at::equal(converted->tensor("model.layers.0.self_attn.k_proj.weight", at::kFloat),
                        ModelSource::open(model())->tensor("model.layers.0.self_attn.k_proj.weight", at::kFloat)));
  EXPECT_LT(report["verification"]["max_abs_logit_difference"].get<double>(), 1e-4);
}

TEST_F(ConverterTest, SingleFileFormats) {
  const ConversionRecipe recipe = recipe_for(ids(), "gqa:2", "mean");
  convert(recipe, {.output = {.output = folder_ / "out.safetensors", .format = "safetensors"}});
  EXPECT_EQ(open_tensors(folder_ / "out.safetensors")->find("model.layers.0.self_attn.v_proj.weight")->shape,
            (std::vector<int64_t>{16, 32}));
  const Json report = convert(recipe, {.output = {.output = folder_ / "out.gguf", .format = "gguf"}});
  EXPECT_LT(report["verification"]["max_abs_logit_difference"].get<double>(), 1e-4);
  convert(recipe, {.output = {.output = out()}});
  EXPECT_TRUE(at::allclose(logits_of(folder_ / "out.gguf"), logits_of(out()), 1e-4, 1e-4));
  convert(recipe, {.output = {.output = folder_ / "q8.gguf", .format = "gguf", .dtype = "q8_0"}});
}

TEST_F(ConverterTest, AFailedRunLeavesNoOutputAndResumesWhenTheCauseIsGone) {
  ConversionRecipe recipe = recipe_for(ids(), "gqa:2", "mean");
  convert(recipe, {.output = {.output = folder_ / "whole" / "out"}});
  // As after a kill behind layer 0: the partial folder of a run whose later layers are taken away.
  {
    const Json identity = [&] {
      Json record = JsonObject::from_file(folder_ / "whole" / "out" / "cinch.json").json();
      Json kept;
      for (const char* key : {"version", "recipe", "source", "calibration", "output", "threads", "device"})
        kept[key] = record[key];
      return kept;
    }();
    PartialFolder partial(out(), identity, PartialFolder::Start::fresh);
    const auto source = open_tensors(folder_ / "whole" / "out");
    std::map<std::string, PartialFolder::StoredTensor> layer;
    for (const TensorInfo& info : source->tensors()) {
      if (info.name.find("layers.0.self_attn") != std::string::npos)
        layer[info.name] = {info.dtype, to_torch(source->read(info.name), torch_dtype(info.dtype))};
    }
    partial.store_layer(0, layer, JsonObject::from_file(folder_ / "whole" / "out" / "cinch.json").json()["layers"][0]);
  }
  EXPECT_THROW(convert(recipe, {.output = {.output = out()}}), UsageError);
  const Json report = convert(recipe, {.output = {.output = out()}, .resume = true});
  EXPECT_EQ(report["resumed_layers"], 1);
  EXPECT_EQ(folder_digests(out()), folder_digests(folder_ / "whole" / "out"));
  // Once more: it is complete.
  EXPECT_EQ(convert(recipe, {.output = {.output = out()}, .resume = true})["layers"].size(), 2u);
  recipe.method = "first";
  EXPECT_THROW(convert(recipe, {.output = {.output = out()}, .resume = true}), UsageError);
}

TEST_F(ConverterTest, ResumeWithAnotherRecipeNamesTheDifference) {
  const ConversionRecipe recipe = recipe_for(ids(), "gqa:2", "mean");
  { PartialFolder partial(out(), {{"recipe", recipe_json(recipe)}}, PartialFolder::Start::fresh); }
  ConversionRecipe other = recipe;
  other.method = "first";
  try {
    convert(other, {.output = {.output = out()}, .resume = true});
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), HasSubstr("recipe.method: was \"mean\", now \"first\""));
  }
}

TEST_F(ConverterTest, AGroupedSourceWithOddSizes) {
  write_tiny_model(
      folder_ / "odd",
      {.layers = 3, .heads = 9, .kv_heads = 3, .head_dim = 6, .hidden = 54, .intermediate = 50, .vocab = 97}, 3);
  const Json report =
      convert_model(ModelSource::open(folder_ / "odd"), recipe_for(ids(), "mqa", "mean"), {.output = {.output = out()}})
          .json;
  EXPECT_NEAR(report["kv_ratio"].get<double>(), 1.0 / 3, 1e-12);
  EXPECT_LT(report["verification"]["max_abs_logit_difference"].get<double>(), 1e-4);
}

TEST_F(ConverterTest, BiasesAreConverted) {
  write_tiny_model(folder_ / "biased", {.family = "qwen2"}, 4);
  convert_model(ModelSource::open(folder_ / "biased"), recipe_for(ids(), "gqa:2", "mean"),
                {.output = {.output = out()}});
  EXPECT_EQ(ModelSource::open(out())->tensors().find("model.layers.0.self_attn.k_proj.bias")->shape,
            (std::vector<int64_t>{16}));
}

}  // namespace
}  // namespace cinch
