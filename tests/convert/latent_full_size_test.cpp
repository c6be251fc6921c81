// At full size a latent is the source in other coordinates: models of every family, and real ones, keep their logits.
// (Qwen3's key scales would make the cache larger than the source's, which is refused: latent_solvers_test has its
// layer.)
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <ostream>

#include "convert/converter.h"
#include "model/decoder_model.h"
#include "tests/convert/tiny_model.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

struct FullSizeCase {
  std::string name;
  std::filesystem::path model;   // folder with weights
  std::filesystem::path config;  // other than the model's: RoPE variants of one model
};
void PrintTo(const FullSizeCase& c, std::ostream* out) { *out << c.name; }

std::vector<FullSizeCase> cases() {
  std::vector<FullSizeCase> all;
  const auto golden = repo_file("tests/golden/model");
  for (const char* name : {"llama_gqa", "llama_mha", "llama_bias", "llama_wide_heads", "mistral", "qwen2", "gemma2",
                           "phi3_short", "phi3_long"}) {
    all.push_back({name, golden / name, {}});
  }
  for (const char* rope : {"linear", "llama3", "yarn", "yarn_mscale", "dynamic", "longrope"})
    all.push_back({std::string("rope_") + rope, golden / "llama_gqa", golden / "rope" / rope / "config.json"});
  all.push_back({"real_stories260K", repo_file("examples/stories260K"), {}});
  all.push_back({"real_tinyllama3m", asset("models/tinyllama3m-mha/hf-f32"), {}});
  return all;
}

class LatentFullSize : public testing::TestWithParam<FullSizeCase> {
 protected:
  void SetUp() override {
    const FullSizeCase& test_case = GetParam();
    CINCH_NEEDS_ASSET(test_case.model);
    source_ = test_case.model;
    if (test_case.config.empty()) return;
    source_ = folder_ / "model";
    std::filesystem::create_directory(source_);
    std::filesystem::copy_file(test_case.config, source_ / "config.json");
    std::filesystem::create_symlink(test_case.model / "model.safetensors", source_ / "model.safetensors");
  }
  TempFolder folder_;
  std::filesystem::path source_;
};

TEST_P(LatentFullSize, LogitsAreTheSources) {
  const auto source = ModelSource::open(source_);
  const AttentionSpec& spec = source->config().layers.front();
  // No longer than the model's context: beyond, dynamic frequencies change with the length, and a latent's cannot.
  const int64_t window = std::min<int64_t>(32, source->config().max_position_embeddings);
  const int64_t vocab = source->config().vocab_size;
  write_tiny_ids(folder_ / "text.ids", 40 * window, vocab);

  ConversionRecipe recipe;
  parse_target("mla", recipe);
  recipe.method = "weighted";
  recipe.rope_dim = spec.n_kv_heads * spec.rope.rotary_dim;
  recipe.rank = spec.kv_elements() - recipe.rope_dim;
  recipe.refit = RefitMode::off;
  recipe.calibration = {{folder_ / "text.ids", 1.0}};
  recipe.calibration_window = window;
  recipe.calibration_tokens = 40 * window;
  ConvertOptions options;
  options.output = {.output = folder_ / "out", .format = "hdf5", .dtype = "f32"};
  const Json report = convert_model(source, recipe, options).json;
  EXPECT_DOUBLE_EQ(report["kv_ratio"].get<double>(), 1.0);

  at::manual_seed(5);
  const at::Tensor ids = at::randint(vocab, {2, window}, at::kLong);
  const at::Tensor before = DecoderModel(source, at::kFloat).forward(ids);
  const at::Tensor after = DecoderModel(ModelSource::open(folder_ / "out"), at::kFloat).forward(ids);
  EXPECT_LT(((after - before).abs().max() / before.abs().max()).item<double>(), 1e-4);
}

INSTANTIATE_TEST_SUITE_P(Models, LatentFullSize, testing::ValuesIn(cases()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace cinch
