#include "convert/transforms/latent_transform.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <map>

#include "convert/budget_sweep.h"
#include "convert/converter.h"

#include "convert/transforms/latent_sizes.h"
#include "core/digest.h"
#include "core/errors.h"
#include "model/decoder_model.h"
#include "tests/convert/killed_run.h"
#include "tests/convert/tiny_model.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

using testing::HasSubstr;

ConversionRecipe mla_recipe(int64_t rank, int64_t rope_dim, const std::string& method = "weighted") {
  ConversionRecipe recipe;
  parse_target("mla", recipe);
  recipe.method = method;
  recipe.rank = rank;
  recipe.rope_dim = rope_dim;
  recipe.calibration_tokens = 512;
  recipe.calibration_window = 32;
  return recipe;
}

ConversionRecipe budget_recipe(double budget) {
  ConversionRecipe recipe = mla_recipe(0, -1);
  recipe.kv_budget = budget;
  return recipe;
}

AttentionSpec source_spec(int64_t heads, int64_t kv_heads, int64_t head_dim) {
  AttentionSpec spec;
  spec.hidden_size = heads * head_dim;
  spec.n_heads = heads;
  spec.n_kv_heads = kv_heads;
  spec.head_dim = head_dim;
  return spec;
}

TEST(LatentSizes, ABudgetIsSplitAsMeasuredToServeBest) {
  const AttentionSpec smollm2 = source_spec(9, 3, 64);  // 384 numbers
  const std::vector<std::array<int64_t, 3>> table = {{192, 144, 48}, {112, 80, 32}, {96, 64, 32}, {48, 24, 24}};
  for (const auto& [n, rank, rope_dim] : table) {
    const LatentSizes sizes = latent_sizes(smollm2, budget_recipe(static_cast<double>(n) / 384 + 1e-9));
    EXPECT_EQ(sizes.rank, rank) << n;
    EXPECT_EQ(sizes.rope_dim, rope_dim) << n;
  }
}

TEST(LatentSizes, StayWithinAnyBudget) {
  for (const AttentionSpec& spec :
       {source_spec(9, 3, 48), source_spec(32, 32, 128), source_spec(8, 4, 8), source_spec(12, 2, 128)}) {
    for (const double budget : {0.06, 0.125, 0.25, 0.3, 0.5, 0.77, 0.98}) {
      if (budget * static_cast<double>(spec.kv_elements()) < 16) continue;
      const LatentSizes sizes = latent_sizes(spec, budget_recipe(budget));
      EXPECT_LE(static_cast<double>(sizes.rank + sizes.rope_dim), budget * static_cast<double>(spec.kv_elements()));
      EXPECT_GE(sizes.rank, 8);
      EXPECT_EQ(sizes.rank % 8, 0);
      EXPECT_EQ(sizes.rope_dim % 8, 0);
      EXPECT_LE(sizes.rope_dim, spec.n_kv_heads * spec.head_dim);
    }
  }
}

TEST(LatentSizes, KeyScalesOfQkNormCount) {
  AttentionSpec spec = source_spec(8, 4, 16);
  spec.qk_norm = true;
  const LatentSizes sizes = latent_sizes(spec, budget_recipe(0.5));
  EXPECT_LE(sizes.rank + sizes.rope_dim + 4, 64);
}

TEST(LatentSizes, ImpossibleOnesAreRefused) {
  AttentionSpec spec = source_spec(4, 4, 8);  // 64 numbers
  EXPECT_THROW(latent_sizes(spec, mla_recipe(20, 7)), UsageError);
  EXPECT_THROW(latent_sizes(spec, mla_recipe(8, 34)), UsageError);
  EXPECT_THROW(latent_sizes(spec, mla_recipe(57, 8)), UsageError);
  EXPECT_THROW(latent_sizes(spec, budget_recipe(0.1)), UsageError);
  EXPECT_EQ(latent_sizes(spec, mla_recipe(40, 24)).rank, 40) << "as large as before is allowed";
  spec.qk_norm = true;  // four key scales more
  try {
    latent_sizes(spec, mla_recipe(40, 24));
    FAIL();
  } catch (const UnsupportedError& error) {
    EXPECT_THAT(error.what(), HasSubstr("64 numbers per token and layer now, 40 + 24 + 4 key scales then"));
  }
}

TEST(LatentSizes, FewerBitsBuyMoreNumbers) {
  const AttentionSpec smollm2 = source_spec(9, 3, 64);  // 384 numbers
  const auto sizes = [&](double budget, int bits) {
    ConversionRecipe recipe = budget_recipe(budget);
    recipe.kv_bits = bits;
    return latent_sizes(smollm2, recipe);
  };
  // docs/conversion.md: 144 + 48 numbers at 4 bits are 14.1 % of the bytes, at 8 bits 26.6 %.
  const LatentSizes four = sizes(0.141, 4), eight = sizes(0.266, 8);
  EXPECT_EQ(four.rank + four.rope_dim, 192);
  EXPECT_EQ(eight.rank + eight.rope_dim, 192);
  EXPECT_NEAR(four.kv_ratio(smollm2), 192 * 4.5 / (384 * 16), 1e-12);
  EXPECT_EQ(sizes(0.141, 0).bits, 4);
  EXPECT_EQ(sizes(0.5, 0).bits, 8);
  EXPECT_EQ(sizes(0.5, 4).rank + sizes(0.5, 4).rope_dim, 376) << "never more than the source has";
  for (const int bits : {16, 8, 4}) {
    for (const double budget : {0.05, 0.1, 0.2, 0.3, 0.6}) {
      EXPECT_LE(sizes(budget, bits).kv_ratio(smollm2), budget + 1e-9) << bits << " bits of " << budget;
    }
  }
}

TEST(LatentSizes, KeyScalesStayAt16Bits) {
  AttentionSpec spec = source_spec(8, 4, 16);  // 128 numbers
  spec.qk_norm = true;
  ConversionRecipe recipe = budget_recipe(0.25);
  recipe.kv_bits = 4;
  const LatentSizes sizes = latent_sizes(spec, recipe);
  EXPECT_NEAR(sizes.kv_ratio(spec), ((sizes.rank + sizes.rope_dim) * 4.5 + 4 * 16) / (128 * 16), 1e-12);
  EXPECT_LE(sizes.kv_ratio(spec), 0.25);
}

TEST(LatentSizes, MoreGeometricSlotsThanPlanesAreRefused) {
  AttentionSpec spec = source_spec(9, 3, 12);
  spec.rope.rotary_dim = 12;
  ConversionRecipe recipe = mla_recipe(20, 12);
  recipe.slots = SlotRule::geometric;
  EXPECT_EQ(latent_sizes(spec, recipe).rope_dim, 12);
  recipe.rope_dim = 14;
  EXPECT_THROW(latent_sizes(spec, recipe), UsageError);
  recipe.method = "balanced-pca";
  EXPECT_THROW(check_recipe(recipe), UsageError) << "balanced-pca has slots of its own";
}

TEST(LatentSizes, TargetsAndMethodsThatDoNotFitAreRefused) {
  EXPECT_THROW(check_recipe(mla_recipe(0, -1)), UsageError);
  EXPECT_THROW(check_recipe(mla_recipe(8, -1)), UsageError);
  ConversionRecipe both = mla_recipe(8, 8);
  both.kv_budget = 0.5;
  EXPECT_THROW(check_recipe(both), UsageError);
  ConversionRecipe heads = mla_recipe(8, 8);
  parse_target("mqa", heads);
  EXPECT_THROW(check_recipe(heads), UsageError);
  EXPECT_DOUBLE_EQ(parse_budget("25%"), 0.25);
  EXPECT_DOUBLE_EQ(parse_budget("0.125"), 0.125);
  for (const char* bad : {"", "%", "0", "100%", "-5%", "25 %x", "nan", "inf"})
    EXPECT_THROW(parse_budget(bad), UsageError) << bad;
}

class LatentConversion : public testing::TestWithParam<const char*> {
 protected:
  /// 9 heads on 3 KV heads of 12, two layers.
  void SetUp() override {
    write_tiny_model(folder_ / "model",
                     {.family = GetParam(), .heads = 9, .kv_heads = 3, .head_dim = 12, .hidden = 40});
    write_tiny_ids(folder_ / "text.ids", 2000, 97);
  }
  Json convert(ConversionRecipe recipe, const char* out, bool resume = false,
               const std::filesystem::path& statistics = {}) const {
    recipe.calibration = {{folder_ / "text.ids", 1.0}};
    ConvertOptions options;
    options.output.output = folder_ / out;
    options.output.format = "hdf5";
    options.resume = resume;
    options.statistics = statistics;
    return convert_model(ModelSource::open(folder_ / "model"), recipe, options).json;
  }
  /// Mean squared difference to the source's logits over that of the logits' own spread.
  double logit_error(const char* out) const {
    const at::Tensor ids = at::arange(48, at::kLong).unsqueeze(0);
    const at::Tensor before = DecoderModel(ModelSource::open(folder_ / "model"), at::kFloat).forward(ids);
    const at::Tensor after = DecoderModel(ModelSource::open(folder_ / out), at::kFloat).forward(ids);
    return ((after - before).square().mean() / before.square().mean()).item<double>();
  }
  TempFolder folder_;
};

TEST_P(LatentConversion, WritesANativeModelWithACacheOfItsSizes) {
  const Json report = convert(mla_recipe(20, 8), "out");
  EXPECT_NEAR(report["kv_ratio"].get<double>(), 28.0 / 72, 1e-12);
  EXPECT_LT(report["verification"]["max_abs_logit_difference"].get<double>(), 1e-4);
  const auto model = ModelSource::open(folder_ / "out");
  const auto& layers = model->config().layers;
  for (const AttentionSpec& layer : layers) {
    EXPECT_EQ(layer.kind, AttentionKind::latent);
    EXPECT_EQ(layer.kv_elements(), 28);
    EXPECT_EQ(layer.rope_inv_freq, layers.front().rope_inv_freq) << "slots are shared";
    EXPECT_GT(*std::max_element(layer.rope_inv_freq.begin(), layer.rope_inv_freq.end()), 0.0);
  }
}

TEST_P(LatentConversion, AlmostFullSizesAlmostGiveTheSource) {
  convert(mla_recipe(20, 8), "small");
  convert(mla_recipe(44, 24), "large");  // 68 of 72 numbers
  EXPECT_LT(logit_error("large"), 0.25 * logit_error("small"));
}

TEST_P(LatentConversion, LayersMayHaveSlotsOfTheirOwnAndStayAsTheyAre) {
  ConversionRecipe recipe = mla_recipe(20, 8);
  recipe.slots = SlotRule::own;
  recipe.layers = {1};
  convert(recipe, "out");
  const auto model = ModelSource::open(folder_ / "out");
  EXPECT_EQ(model->config().layers[0].kind, AttentionKind::grouped_query);
  EXPECT_EQ(model->config().layers[1].kind, AttentionKind::latent);
}

TEST_P(LatentConversion, GeometricSlotsAreOneTableThatABaseGives) {
  ConversionRecipe recipe = mla_recipe(20, 8);
  recipe.slots = SlotRule::geometric;
  const Json report = convert(recipe, "out");
  const auto model = ModelSource::open(folder_ / "out");
  const std::vector<double> table = model->config().layers[0].rope_inv_freq;
  EXPECT_EQ(model->config().layers[1].rope_inv_freq, table);
  ASSERT_EQ(table.size(), 4u);
  for (size_t s = 2; s < table.size(); ++s) EXPECT_NEAR(table[s] / table[s - 1], table[1] / table[0], 1e-9);
  EXPECT_GT(report["shared_slots"]["predicted_error"].get<double>(),
            report["shared_slots"]["predicted_error_own_slots"].get<double>());
}

TEST_P(LatentConversion, BaselinesLoseMore) {
  convert(mla_recipe(20, 8), "weighted");
  convert(mla_recipe(20, 8, "balanced-pca"), "balanced");
  convert(mla_recipe(20, 8, "weight-svd"), "svd");
  EXPECT_LT(logit_error("weighted"), logit_error("balanced"));
  EXPECT_LT(logit_error("weighted"), logit_error("svd"));
}

TEST_P(LatentConversion, ResumedRunsGiveTheSameBytes) {
  convert(mla_recipe(20, 8), "whole");
  leave_as_killed_behind_layer_0(folder_ / "whole", folder_ / "again");
  EXPECT_EQ(convert(mla_recipe(20, 8), "again", /*resume=*/true)["resumed_layers"], 1);
  EXPECT_EQ(sha256_hex_of_file(folder_ / "again/model.h5"), sha256_hex_of_file(folder_ / "whole/model.h5"));
  EXPECT_EQ(sha256_hex_of_file(folder_ / "again/config.json"), sha256_hex_of_file(folder_ / "whole/config.json"));
}

TEST_P(LatentConversion, StatisticsServeOtherSizesAndGiveTheSameBytes) {
  const auto file = folder_ / "moments.h5";
  convert(mla_recipe(20, 8), "plain");
  convert(mla_recipe(20, 8), "first", false, file);
  const std::string written = sha256_hex_of_file(file);
  convert(mla_recipe(20, 8), "second", false, file);
  EXPECT_EQ(sha256_hex_of_file(folder_ / "first/model.h5"), sha256_hex_of_file(folder_ / "plain/model.h5"));
  EXPECT_EQ(sha256_hex_of_file(folder_ / "second/model.h5"), sha256_hex_of_file(folder_ / "plain/model.h5"));
  convert(mla_recipe(12, 4), "smaller", false, file);
  convert(mla_recipe(20, 8, "balanced-pca"), "balanced", false, file);
  EXPECT_EQ(sha256_hex_of_file(file), written) << "only read";

  ConversionRecipe other = mla_recipe(20, 8);
  other.calibration_tokens = 256;
  EXPECT_THROW(convert(other, "other", false, file), UsageError) << "another calibration";
  EXPECT_THROW(convert(mla_recipe(20, 8, "weight-svd"), "svd", false, file), UsageError) << "uses none";
}

TEST_P(LatentConversion, LayersReportWhatWasExpected) {
  const Json report = convert(mla_recipe(20, 8), "out");
  for (const Json& layer : report["layers"]) {
    EXPECT_GT(layer["predicted_error"].get<double>(), 0);
    EXPECT_EQ(layer["rank"], 20);
    // A prediction: the same order of magnitude as the measured error before the refit.
    const double ratio = layer["predicted_error"].get<double>() / layer["output_error_before_refit"].get<double>();
    EXPECT_GT(ratio, 0.3);
    EXPECT_LT(ratio, 3);
  }
  EXPECT_GT(report["shared_slots"]["predicted_error_own_slots"].get<double>(), 0);
}

TEST_P(LatentConversion, RanksGoWhereTheyMatterAndSurviveAResume) {
  ConversionRecipe recipe = mla_recipe(24, 8);
  recipe.per_layer = true;
  const Json report = convert(recipe, "out");
  int64_t total = 0;
  for (const Json& layer : report["layers"]) {
    const auto rank = layer["rank"].get<int64_t>();
    EXPECT_GE(rank, 8);
    EXPECT_LE(rank, 48);
    total += rank;
  }
  EXPECT_EQ(total, 48);
  const auto model = ModelSource::open(folder_ / "out");
  for (size_t l = 0; l < 2; ++l) EXPECT_EQ(model->config().layers[l].kv_lora_rank, report["layers"][l]["rank"]);
  EXPECT_LT(report["verification"]["max_abs_logit_difference"].get<double>(), 1e-4);
}

TEST_P(LatentConversion, SweepsPredictLessErrorForMoreBytes) {
  const auto file = folder_ / "moments.h5";
  convert(mla_recipe(20, 8), "out", false, file);
  ConversionRecipe recipe = mla_recipe(0, -1);
  recipe.kv_bits = 0;
  const auto source = ModelSource::open(folder_ / "model");
  const std::vector<SweepRow> rows = sweep_budgets(*source, recipe, {0.3, 0.6, 0.9}, file);
  EXPECT_EQ(rows.size(), 3u * 3 + 2);
  for (const SweepRow& row : rows) {
    EXPECT_LE(row.kv_ratio, row.budget > 0 ? row.budget + 1e-9 : 1.0);
    EXPECT_GE(row.worst_error, row.error);
    for (const SweepRow& other : rows) {
      if (other.bits == row.bits && other.budget > row.budget && row.budget > 0) {
        EXPECT_LE(other.error, row.error + 1e-12);
      }
    }
  }
  EXPECT_EQ(sweep_budgets(*source, recipe, {0.01, 0.6}, file).size(), 3u + 2) << "too small a budget is left out";
  write_tiny_model(folder_ / "other", {.family = GetParam(), .heads = 9, .kv_heads = 3, .head_dim = 12, .hidden = 40},
                   /*seed=*/2);
  EXPECT_THROW(sweep_budgets(*ModelSource::open(folder_ / "other"), recipe, {0.5}, file), UsageError);
}

TEST(LatentShapes, NineHeadsOnThreeOf48BecomeALatentOf40And24) {
  const TempFolder folder;
  write_tiny_model(folder / "model", {.heads = 9, .kv_heads = 3, .head_dim = 48, .hidden = 60});
  write_tiny_ids(folder / "text.ids", 2000, 97);
  ConversionRecipe recipe = mla_recipe(40, 24);
  recipe.calibration = {{folder / "text.ids", 1.0}};
  ConvertOptions options;
  options.output.output = folder / "out";
  options.output.format = "hdf5";
  convert_model(ModelSource::open(folder / "model"), recipe, options);

  const DecoderModel model(ModelSource::open(folder / "out"), at::kFloat);
  const at::Tensor ids = at::arange(30, at::kLong).unsqueeze(0);
  const at::Tensor whole = model.forward(ids);
  std::vector<KvCache> caches(2);
  std::vector<at::Tensor> pieces;
  for (const at::Tensor& some : ids.split_with_sizes({17, 1, 12}, 1)) pieces.push_back(model.forward(some, &caches));
  EXPECT_LT((at::cat(pieces, 1) - whole).abs().max().item<double>(), 1e-4 * whole.abs().max().item<double>());
  for (const KvCache& cache : caches) EXPECT_EQ(cache.bytes_per_token(), (40 + 24) * 4);
}

INSTANTIATE_TEST_SUITE_P(Families, LatentConversion, testing::Values("llama", "qwen2"));

}  // namespace
}  // namespace cinch
