// At full size a latent is the source in other coordinates: models of every family, and real ones, keep their logits.
// (Qwen3's key scales would make the cache larger than the source's, which is refused: latent_solvers_test has its
// layer.)
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "convert/converter.h"
#include "model/decoder_model.h"
#include "tests/convert/tiny_model.h"
#include "tests/model/golden.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

/// Logits of `path` converted at full size, against its own, relative to their largest.
double full_size_difference(const std::filesystem::path& path) {
  const auto source = ModelSource::open(path);
  const AttentionSpec& spec = source->config().layers.front();
  // No longer than the model's context: beyond, dynamic frequencies change with the length, and a latent's cannot.
  const int64_t window = std::min<int64_t>(32, source->config().max_position_embeddings);
  const int64_t vocab = source->config().vocab_size;
  const TempFolder folder;
  write_tiny_ids(folder / "text.ids", 40 * window, vocab);

  ConversionRecipe recipe;
  parse_target("mla", recipe);
  recipe.method = "weighted";
  recipe.rope_dim = spec.n_kv_heads * spec.rope.rotary_dim;
  recipe.rank = spec.kv_elements() - recipe.rope_dim;
  recipe.refit = RefitMode::off;
  recipe.calibration = {{folder / "text.ids", 1.0}};
  recipe.calibration_window = window;
  recipe.calibration_tokens = 40 * window;
  ConvertOptions options;
  options.output = {.output = folder / "out", .format = "hdf5", .dtype = "f32"};
  const Json report = convert_model(source, recipe, options).json;
  EXPECT_DOUBLE_EQ(report["kv_ratio"].get<double>(), 1.0);

  at::manual_seed(5);
  const at::Tensor ids = at::randint(vocab, {2, window}, at::kLong);
  const at::Tensor before = DecoderModel(source, at::kFloat).forward(ids);
  const at::Tensor after = DecoderModel(ModelSource::open(folder / "out"), at::kFloat).forward(ids);
  return relative_difference(after, before);
}

class LatentFullSize : public testing::TestWithParam<GoldenCase> {};

TEST_P(LatentFullSize, LogitsAreTheSources) { EXPECT_LT(full_size_difference(GoldenModel(GetParam()).path()), 1e-4); }

std::vector<GoldenCase> cases_without_key_scales() {
  std::vector<GoldenCase> cases = golden_cases();
  std::erase_if(cases, [](const GoldenCase& c) { return c.name == "qwen3" || c.name.starts_with("deepseek"); });
  return cases;
}

std::string test_name(const testing::TestParamInfo<GoldenCase>& test) {
  std::string name = test.param.name;
  std::replace(name.begin(), name.end(), '/', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Families, LatentFullSize, testing::ValuesIn(cases_without_key_scales()), test_name);

TEST(LatentFullSizeOfStories, LogitsAreTheSources) {
  EXPECT_LT(full_size_difference(repo_file("examples/stories260K")), 1e-4);
}

TEST(LatentFullSizeOfTinyllama, RealModelsLogitsAreTheSources) {
  const auto model = asset("models/tinyllama3m-mha/hf-f32");
  CINCH_NEEDS_ASSET(model);
  EXPECT_LT(full_size_difference(model), 1e-4);
}

}  // namespace
}  // namespace cinch
