#include "convert/conversion_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "convert/converter.h"
#include "core/errors.h"
#include "model/config_source.h"
#include "tests/convert/tiny_model.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

using testing::HasSubstr;

ConversionRecipe recipe_to(const std::string& target) {
  ConversionRecipe recipe;
  parse_target(target, recipe);
  recipe.method = "mean";
  return recipe;
}

std::string fault_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return std::string(error.what()) + " | " + error.help();
  }
  return "no fault";
}

TEST(PlanConversion, CountsTensorsAndCache) {
  const ConfigOnlySource source(tiny_config({.layers = 3, .heads = 8, .kv_heads = 8}));
  const ConversionPlan plan = plan_conversion(source, recipe_to("gqa:2"), {.output = "out"});
  EXPECT_DOUBLE_EQ(plan.kv_ratio, 0.25);
  EXPECT_EQ(plan.target.layers[2].n_kv_heads, 2);
  int derived = 0;
  for (const PlannedTensor& tensor : plan.tensors) {
    if (tensor.role == TensorRole::derived) ++derived;
    if (tensor.name == "model.layers.1.self_attn.k_proj.weight") {
      EXPECT_EQ(tensor.shape, (std::vector<int64_t>{16, 32}));
      EXPECT_EQ(tensor.role, TensorRole::derived);
    }
    if (tensor.name == "model.layers.1.mlp.up_proj.weight") {
      EXPECT_EQ(tensor.role, TensorRole::kept);
    }
  }
  EXPECT_EQ(derived, 12);
  EXPECT_LT(plan.target_parameters, plan.source_parameters);
  EXPECT_GT(plan.disk_bytes, 4 * plan.target_parameters);
  EXPECT_DOUBLE_EQ(plan.break_even_tokens, 4.0 * static_cast<double>(plan.target_parameters) /
                                               static_cast<double>(plan.target.kv_bytes_per_token()));
  for (const RuntimeVerdict& verdict : plan.runtimes) EXPECT_TRUE(verdict.loads) << verdict.name;
}

TEST(PlanConversion, RefusesTargetsThatDoNotShrinkTheCache) {
  const ConfigOnlySource source(tiny_config({.heads = 8, .kv_heads = 4}));
  const ModelWriterOptions output{.output = "out"};
  EXPECT_THAT(fault_of([&] { plan_conversion(source, recipe_to("gqa:4"), output); }), HasSubstr("would not shrink"));
  EXPECT_THAT(fault_of([&] { plan_conversion(source, recipe_to("gqa:8"), output); }), HasSubstr("larger"));
  EXPECT_THAT(fault_of([&] { plan_conversion(source, recipe_to("gqa:3"), output); }),
              HasSubstr("possible here: --to gqa:2, mqa"));
  EXPECT_THROW(plan_conversion(source, recipe_to("gqa:3"), output), UnsupportedError);
}

TEST(PlanConversion, OddHeadCounts) {
  const ConfigOnlySource source(tiny_config({.heads = 9, .kv_heads = 3, .head_dim = 48, .hidden = 36}));
  EXPECT_THROW(plan_conversion(source, recipe_to("gqa:2"), {.output = "out"}), UnsupportedError);
  EXPECT_NEAR(plan_conversion(source, recipe_to("mqa"), {.output = "out"}).kv_ratio, 1.0 / 3, 1e-12);
}

TEST(PlanConversion, PartialLayersAreForNativeFoldersOnly) {
  const ConfigOnlySource source(tiny_config({.layers = 4}));
  ConversionRecipe recipe = recipe_to("mqa");
  recipe.layers = {1, 2};
  EXPECT_THAT(fault_of([&] { plan_conversion(source, recipe, {.output = "out"}); }), HasSubstr("--for native"));
  const ConversionPlan plan = plan_conversion(source, recipe, {.output = "out", .format = "hdf5"});
  EXPECT_EQ(plan.target.layers[0].n_kv_heads, 4);
  EXPECT_EQ(plan.target.layers[1].n_kv_heads, 1);
  for (const RuntimeVerdict& verdict : plan.runtimes) EXPECT_FALSE(verdict.loads) << verdict.name;
  recipe.layers = {4};
  EXPECT_THAT(fault_of([&] { plan_conversion(source, recipe, {.output = "out", .format = "hdf5"}); }),
              HasSubstr("0 to 3"));
}

TEST(PlanConversion, LatentLayersStayAsTheyAre) {
  Json json = tiny_config({.layers = 3});
  const Json grouped = {{"num_key_value_heads", 4}};
  const Json latent = {{"kind", "latent"},      {"num_key_value_heads", 4}, {"kv_lora_rank", 9},
                       {"qk_nope_head_dim", 8}, {"qk_rope_head_dim", 0},    {"v_head_dim", 8}};
  json["cinch"] = {{"layers", {grouped, latent, grouped}}};
  const ConfigOnlySource source(json);
  EXPECT_THAT(fault_of([&] { plan_conversion(source, recipe_to("mqa"), {.output = "out", .format = "native"}); }),
              testing::AllOf(HasSubstr("layer 1 has latent attention already"), HasSubstr("converted from")));
  ConversionRecipe recipe = recipe_to("mqa");
  recipe.layers = {0, 2};
  EXPECT_THAT(fault_of([&] { plan_conversion(source, recipe, {.output = "out"}); }), HasSubstr("--format native"));
  const ConversionPlan plan = plan_conversion(source, recipe, {.output = "out", .format = "native"});
  EXPECT_EQ(plan.target.layers[1], source.config().layers[1]);
  EXPECT_EQ(plan.to_json()["target"]["layers"][1]["kind"], "latent");
  for (const RuntimeVerdict& verdict : plan.runtimes) {
    EXPECT_FALSE(verdict.loads) << verdict.name;
    EXPECT_EQ(verdict.rule, "stock/one-kind");
  }
}

TEST(PlanConversion, ShortensWindowsToTheModelsContext) {
  const ConfigOnlySource source(tiny_config({.context = 64}));
  ConversionRecipe recipe = recipe_to("mqa");
  EXPECT_TRUE(plan_conversion(source, recipe, {.output = "out"}).warnings.empty()) << "a default fits by itself";
  EXPECT_EQ(plan_conversion(source, recipe, {.output = "out"}).recipe.calibration_window, 64);
  recipe.calibration_window = 512;
  const ConversionPlan plan = plan_conversion(source, recipe, {.output = "out"});
  EXPECT_EQ(plan.recipe.calibration_window, 64);
  EXPECT_EQ(plan.warnings.size(), 1u);
}

TEST(PlanConversion, JsonHasTheInterfacesKeys) {
  const ConfigOnlySource source(tiny_config({}));
  const Json json = plan_conversion(source, recipe_to("mqa"), {.output = "out"}).to_json();
  for (const char* key : {"source", "target", "kv_ratio", "peak_memory_bytes", "disk_bytes", "seconds_estimate",
                          "break_even_tokens", "runtimes"}) {
    EXPECT_TRUE(json.contains(key)) << key;
  }
  EXPECT_EQ(json["source"]["layers"].size(), 2u);
  EXPECT_EQ(json["target"]["kv_bytes_at"]["4096"], 2 * 2 * 2 * 8 * 4096);
}

/// config.json of Llama-3 models.
Json llama3_config(int64_t hidden, int64_t layers, int64_t heads, int64_t intermediate) {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"hidden_size", hidden},
          {"intermediate_size", intermediate},
          {"num_hidden_layers", layers},
          {"num_attention_heads", heads},
          {"num_key_value_heads", 8},
          {"vocab_size", 128256},
          {"max_position_embeddings", 8192},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 500000.0},
          {"hidden_act", "silu"},
          {"tie_word_embeddings", false},
          {"torch_dtype", "bfloat16"}};
}

TEST(ConversionPlan, LargeModelsNeedLittleMemoryAndNoWeightsToPlan) {
  TempFolder folder;
  write_text(folder / "8b.json", llama3_config(4096, 32, 32, 14336).dump());
  write_text(folder / "70b.json", llama3_config(8192, 80, 64, 28672).dump());
  ConversionRecipe recipe;
  parse_target("mla", recipe);
  recipe.method = "weighted";
  recipe.kv_budget = 0.25;
  const auto peak = [&](const char* name) {
    const ConversionPlan plan =
        plan_conversion(*open_config(folder / name), recipe, {.output = folder / "out", .format = "hdf5", .dtype = {}});
    EXPECT_NEAR(plan.kv_ratio, 0.25, 0.01);
    EXPECT_GT(plan.disk_bytes, 2 * plan.target_parameters);
    return static_cast<double>(plan.peak_memory_bytes) / 1e9;
  };
  EXPECT_LT(peak("8b.json"), 6);
  EXPECT_LT(peak("70b.json"), 16);
  EXPECT_GT(peak("8b.json"), 2) << "two residual streams and a layer alone take that";
}

}  // namespace
}  // namespace cinch
