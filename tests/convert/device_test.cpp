// Conversions on a device: every step finds its tensors there, and the results are those of the CPU.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "convert/converter.h"
#include "convert/partial_folder.h"
#include "convert/transform.h"
#include "tests/convert/tiny_model.h"
#include "tests/support/assets.h"
#include "tests/support/device/test_device.h"

namespace cinch {
namespace {

struct DeviceCase {
  std::string name;
  std::string model;  // of tests/golden/model, or a family of random models
  std::string target, method;
  std::function<void(ConversionRecipe&)> change = [](ConversionRecipe&) {};
};

void PrintTo(const DeviceCase& c, std::ostream* out) { *out << c.name; }

class ConversionOnADevice : public testing::TestWithParam<DeviceCase> {
 protected:
  void SetUp() override {
    const auto golden = repo_file("tests/golden/model/" + GetParam().model);
    if (std::filesystem::exists(golden)) {
      model_ = golden;
    } else {
      write_tiny_model(model_, {.family = GetParam().model, .vocab = 96});
    }
    write_tiny_ids(folder_ / "text.ids", 2000, 96);
  }

  ConversionRecipe recipe() const {
    ConversionRecipe recipe;
    parse_target(GetParam().target, recipe);
    recipe.method = GetParam().method;
    if (recipe.target == TargetKind::mla) {
      recipe.rank = 16;
      recipe.rope_dim = 8;
    }
    recipe.calibration = {{folder_ / "text.ids", 1.0}};
    recipe.calibration_tokens = 512;
    recipe.calibration_window = 32;
    GetParam().change(recipe);
    return recipe;
  }

  Json convert(at::Device device, const std::string& out, const std::filesystem::path& statistics = {},
               bool resume = false) const {
    ConvertOptions options;
    options.output.output = folder_ / out;
    options.output.format = "hdf5";
    options.output.dtype = "f32";
    options.device = device;
    options.statistics = statistics;
    options.resume = resume;
    return convert_model(ModelSource::open(model_), recipe(), options).json;
  }

  /// What a fit yields is the same up to round-off.
  static void expect_alike(const Json& one, const Json& other) {
    ASSERT_EQ(one["layers"].size(), other["layers"].size());
    const auto expect_near = [](const Json& a, const Json& b, const std::string& what) {
      EXPECT_NEAR(a.get<double>(), b.get<double>(), 1e-3 * std::abs(a.get<double>()) + 1e-6) << what;
    };
    for (size_t i = 0; i < one["layers"].size(); ++i) {
      for (const char* key : {"kept_energy_k", "kept_energy_v", "output_error_before_refit", "output_error"})
        expect_near(one["layers"][i][key], other["layers"][i][key], key);
    }
    for (const char* key : {"nll_before", "nll_after", "kl"})
      expect_near(one["held_out"][key], other["held_out"][key], key);
  }

  TempFolder folder_;
  std::filesystem::path model_ = folder_ / "model";
};

TEST_P(ConversionOnADevice, GivesWhatTheCpuGives) {
  expect_alike(convert(at::kCPU, "cpu"), convert(test_device(), "device"));
}

TEST_P(ConversionOnADevice, TakesStatisticsOfTheCpu) {
  if (!transform(GetParam().method).uses_moments(recipe())) return;
  const Json whole = convert(test_device(), "device", folder_ / "device.h5");
  convert(at::kCPU, "cpu", folder_ / "cpu.h5");
  expect_alike(whole, convert(test_device(), "again", folder_ / "cpu.h5"));
  expect_alike(whole, convert(at::kCPU, "other", folder_ / "device.h5"));
}

TEST_P(ConversionOnADevice, GoesOnFromFinishedLayers) {
  const Json whole = convert(test_device(), "whole");
  const Json record = JsonObject::from_file(folder_ / "whole/cinch.json").json();
  Json identity;
  for (const char* key : {"version", "recipe", "source", "calibration", "output", "threads", "device"})
    identity[key] = record[key];
  {
    // As after a kill behind layer 0.
    PartialFolder partial(folder_ / "again", identity, PartialFolder::Start::fresh);
    const auto source = open_tensors(folder_ / "whole");
    std::map<std::string, PartialFolder::StoredTensor> layer;
    for (const TensorInfo& info : source->tensors()) {
      if (info.name.find("layers.0.self_attn") != std::string::npos)
        layer[info.name] = {info.dtype, to_torch(source->read(info.name), torch_dtype(info.dtype))};
    }
    partial.store_layer(0, layer, record["layers"][0]);
  }
  const Json resumed = convert(test_device(), "again", {}, /*resume=*/true);
  EXPECT_EQ(resumed["resumed_layers"], 1);
  expect_alike(whole, resumed);
}

std::vector<DeviceCase> cases() {
  const auto refit = [](ConversionRecipe& recipe) { recipe.refit = RefitMode::on; };
  const auto narrow = [](ConversionRecipe& recipe) { recipe.refit = RefitMode::off; };
  const auto per_layer = [](ConversionRecipe& recipe) { recipe.per_layer = true; };
  const auto own = [](ConversionRecipe& recipe) { recipe.slots = SlotRule::own; };
  const auto geometric = [](ConversionRecipe& recipe) {
    recipe.slots = SlotRule::geometric;
    recipe.rope_dim = 4;
  };
  return {
      {"aligned", "llama", "gqa:2", "aligned"},
      {"aligned_mqa_unrefitted", "llama_gqa", "mqa", "aligned", narrow},
      {"aligned_biases_windows", "qwen2", "mqa", "aligned"},
      {"aligned_output_biases", "llama_bias", "mqa", "aligned"},
      {"aligned_qk_norm", "qwen3", "mqa", "aligned"},
      {"aligned_soft_caps", "gemma2", "mqa", "aligned"},
      {"mean", "llama", "mqa", "mean"},
      {"mean_refitted", "llama_bias", "mqa", "mean", refit},
      {"first_biases", "qwen2", "mqa", "first"},
      {"procrustes", "llama", "gqa:2", "procrustes"},
      {"procrustes_qk_norm", "qwen3", "mqa", "procrustes", refit},
      {"weighted", "llama", "mla", "weighted"},
      {"weighted_own", "llama_gqa", "mla", "weighted", own},
      {"weighted_geometric", "llama_mha", "mla", "weighted", geometric},
      {"weighted_per_layer", "mistral", "mla", "weighted", per_layer},
      {"weighted_biases_windows", "qwen2", "mla", "weighted"},
      {"weighted_output_biases", "llama_bias", "mla", "weighted"},
      {"weighted_qk_norm", "qwen3", "mla", "weighted"},
      {"weighted_soft_caps", "gemma2", "mla", "weighted"},
      {"balanced_pca", "llama", "mla", "balanced-pca"},
      {"balanced_pca_refitted", "qwen3", "mla", "balanced-pca", refit},
      {"weight_svd", "qwen2", "mla", "weight-svd"},
      {"weight_svd_refitted", "gemma2", "mla", "weight-svd", refit},
  };
}

INSTANTIATE_TEST_SUITE_P(Cases, ConversionOnADevice, testing::ValuesIn(cases()),
                         [](const auto& given) { return given.param.name; });

}  // namespace
}  // namespace cinch
