// Conversions on a device: every step finds its tensors there, and the results are those of the CPU.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "convert/converter.h"

#include "tests/convert/killed_run.h"
#include "tests/convert/tiny_model.h"
#include "tests/support/assets.h"
#include "tests/support/device/device_under_test.h"

namespace cinch {
namespace {

struct DeviceCase {
  std::string name;
  std::string model;  // of tests/golden/model, or a family of random models
  std::string target, method;
  std::function<void(ConversionRecipe&)> change = [](ConversionRecipe&) {};
  at::DeviceType device = at::kPrivateUse1;
};

void PrintTo(const DeviceCase& c, std::ostream* out) { *out << c.name; }

class OnADevice : public testing::TestWithParam<DeviceCase> {
 protected:
  void SetUp() override {
    const std::string missing = missing_device(GetParam().device);
    if (!missing.empty()) GTEST_SKIP() << missing;
    const auto golden = repo_file("tests/golden/model/" + GetParam().model);
    if (std::filesystem::exists(golden)) {
      model_ = golden;
    } else {
      write_tiny_model(model_, {.family = GetParam().model, .vocab = 96});
    }
    write_tiny_ids(folder_ / "text.ids", 2000, 96);
  }

  static at::Device device() { return device_under_test(GetParam().device); }

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

  Json convert(at::Device on, const std::string& out, const std::filesystem::path& statistics = {},
               bool resume = false) const {
    ConvertOptions options;
    options.output.output = folder_ / out;
    options.output.format = "hdf5";
    options.output.dtype = "f32";
    options.device = on;
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

using ConversionOnADevice = OnADevice;
using StatisticsOnADevice = OnADevice;
using ResumeOnADevice = OnADevice;

TEST_P(ConversionOnADevice, GivesWhatTheCpuGives) {
  expect_alike(convert(at::kCPU, "cpu"), convert(device(), "device"));
}

TEST_P(StatisticsOnADevice, ServeThereAndOnTheCpu) {
  const Json whole = convert(device(), "device", folder_ / "device.h5");
  convert(at::kCPU, "cpu", folder_ / "cpu.h5");
  expect_alike(whole, convert(device(), "again", folder_ / "cpu.h5"));
  expect_alike(whole, convert(at::kCPU, "other", folder_ / "device.h5"));
}

TEST_P(ResumeOnADevice, GoesOnFromFinishedLayers) {
  const Json whole = convert(device(), "whole");
  leave_as_killed_behind_layer_0(folder_ / "whole", folder_ / "again");
  const Json resumed = convert(device(), "again", {}, /*resume=*/true);
  EXPECT_EQ(resumed["resumed_layers"], 1);
  expect_alike(whole, resumed);
}

/// All of them, or those of these names.
std::vector<DeviceCase> cases(at::DeviceType device, const std::vector<std::string>& names = {}) {
  const auto refit = [](ConversionRecipe& recipe) { recipe.refit = RefitMode::on; };
  const auto narrow = [](ConversionRecipe& recipe) { recipe.refit = RefitMode::off; };
  const auto per_layer = [](ConversionRecipe& recipe) { recipe.per_layer = true; };
  const auto own = [](ConversionRecipe& recipe) { recipe.slots = SlotRule::own; };
  const auto geometric = [](ConversionRecipe& recipe) {
    recipe.slots = SlotRule::geometric;
    recipe.rope_dim = 4;
  };
  std::vector<DeviceCase> all = {
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
  if (!names.empty()) {
    std::erase_if(all,
                  [&](const DeviceCase& c) { return std::find(names.begin(), names.end(), c.name) == names.end(); });
  }
  for (DeviceCase& c : all) c.device = device;
  return all;
}

const std::vector<std::string> kOfStatistics = {"weighted", "weighted_qk_norm", "balanced_pca"};
const std::vector<std::string> kResumed = {"aligned", "mean_refitted", "weighted_per_layer"};

std::string name_of(const testing::TestParamInfo<DeviceCase>& given) { return given.param.name; }

INSTANTIATE_TEST_SUITE_P(TestDevice, ConversionOnADevice, testing::ValuesIn(cases(at::kPrivateUse1)), name_of);
INSTANTIATE_TEST_SUITE_P(TestDevice, StatisticsOnADevice, testing::ValuesIn(cases(at::kPrivateUse1, kOfStatistics)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(TestDevice, ResumeOnADevice, testing::ValuesIn(cases(at::kPrivateUse1, kResumed)), name_of);
INSTANTIATE_TEST_SUITE_P(Cuda, ConversionOnADevice, testing::ValuesIn(cases(at::kCUDA)), name_of);
INSTANTIATE_TEST_SUITE_P(Cuda, StatisticsOnADevice, testing::ValuesIn(cases(at::kCUDA, kOfStatistics)), name_of);
INSTANTIATE_TEST_SUITE_P(Cuda, ResumeOnADevice, testing::ValuesIn(cases(at::kCUDA, kResumed)), name_of);

}  // namespace
}  // namespace cinch
