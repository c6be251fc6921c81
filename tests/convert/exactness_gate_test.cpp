// A latent as large as the source's cache holds everything: whatever the family does around its attention, the
// converted model computes the source's logits.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <ostream>

#include "convert/converter.h"
#include "core/errors.h"
#include "model/decoder_model.h"
#include "tests/convert/tiny_model.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

std::vector<std::string> golden_models() {
  std::vector<std::string> names;
  for (const char* folder : {"tests/golden/model", "tests/golden/model/rope"}) {
    for (const auto& entry : std::filesystem::directory_iterator(repo_file(folder))) {
      if (std::filesystem::exists(entry.path() / "config.json"))
        names.push_back(std::filesystem::relative(entry.path(), repo_file("tests/golden/model")).string());
    }
  }
  std::erase_if(names, [](const std::string& name) { return name.starts_with("deepseek"); });  // latent already
  std::sort(names.begin(), names.end());
  return names;
}

class ExactnessGate : public testing::TestWithParam<std::string> {
 protected:
  ExactnessGate() {
    const auto folder = repo_file("tests/golden/model/" + GetParam());
    const auto weights = GetParam().rfind("rope", 0) == 0 ? repo_file("tests/golden/model/llama_gqa") : folder;
    std::filesystem::create_directory(model_);
    std::filesystem::copy_file(folder / "config.json", model_ / "config.json");
    std::filesystem::create_symlink(weights / "model.safetensors", model_ / "model.safetensors");
    ids_ = to_torch(open_tensors(folder / "golden.safetensors")->read("ids"), at::kLong);
  }
  ConversionRecipe full_size() {
    const auto source = ModelSource::open(model_);
    const AttentionSpec& spec = source->config().layers.front();
    write_tiny_ids(folder_ / "text.ids", 1000, source->config().vocab_size);
    ConversionRecipe recipe;
    parse_target("mla", recipe);
    recipe.method = "weighted";
    recipe.rank = recipe.rope_dim = spec.n_kv_heads * spec.head_dim;
    recipe.calibration = {{folder_ / "text.ids", 1.0}};
    // Windows as long as the text: dynamic and longrope frequencies depend on the length.
    recipe.calibration_window = std::min(ids_.size(1), source->config().max_position_embeddings);
    ids_ = ids_.narrow(1, 0, recipe.calibration_window);
    recipe.calibration_tokens = 16 * recipe.calibration_window;
    return recipe;
  }
  void convert(const ConversionRecipe& recipe) {
    ConvertOptions options;
    options.output.output = folder_ / "out";
    options.output.format = "hdf5";
    options.output.dtype = "f32";
    convert_model(ModelSource::open(model_), recipe, options);
  }
  at::Tensor logits(const std::filesystem::path& path) const {
    return DecoderModel(ModelSource::open(path), at::kFloat).forward(ids_);
  }
  TempFolder folder_;
  std::filesystem::path model_ = folder_ / "model";
  at::Tensor ids_;
};

TEST_P(ExactnessGate, FullSizesGiveTheSourcesLogits) {
  const ConversionRecipe recipe = full_size();
  if (ModelSource::open(model_)->config().layers.front().qk_norm) {
    // The key scales of QK-norm come on top: such a cache would grow. tests/attention shows that form to be exact.
    try {
      convert(recipe);
      FAIL();
    } catch (const std::exception& error) {
      EXPECT_THAT(describe_error(error).lines.front(), testing::HasSubstr("the cache would grow"));
    }
    return;
  }
  convert(recipe);
  const at::Tensor before = logits(model_), after = logits(folder_ / "out");
  EXPECT_LT(((after - before).abs().max() / before.abs().max()).item<double>(), 1e-4);
}

TEST_P(ExactnessGate, EveryFamilyTakesABudget) {
  ConversionRecipe recipe = full_size();
  recipe.rank = 0;
  recipe.rope_dim = -1;
  recipe.kv_budget = 0.75;
  convert(recipe);
  const auto made = ModelSource::open(folder_ / "out");
  EXPECT_LE(made->config().kv_elements(), 3 * ModelSource::open(model_)->config().kv_elements() / 4);
  EXPECT_TRUE(logits(folder_ / "out").isfinite().all().item<bool>());
}

std::string test_name(const testing::TestParamInfo<std::string>& test) {
  std::string name = test.param;
  std::replace(name.begin(), name.end(), '/', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Families, ExactnessGate, testing::ValuesIn(golden_models()), test_name);

}  // namespace
}  // namespace cinch
