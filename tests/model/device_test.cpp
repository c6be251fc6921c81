// Models on a device: every operation finds its tensors there, and the results are those of the CPU.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "model/decoder_model.h"
#include "model/generator.h"
#include "tests/model/golden.h"
#include "tests/model/latent_model.h"
#include "tests/support/device/device_under_test.h"

namespace cinch {
namespace {

class ModelOnADevice : public testing::TestWithParam<at::DeviceType> {
 protected:
  void SetUp() override {
    const std::string missing = missing_device(GetParam());
    if (!missing.empty()) GTEST_SKIP() << missing;
  }
  static at::Device device() { return device_under_test(GetParam()); }

  /// Logits, and what is generated greedily and by draws.
  static void expect_equal(const std::filesystem::path& model, const at::Tensor& ids) {
    const DecoderModel cpu(ModelSource::open(model), at::kDouble);
    const DecoderModel other(ModelSource::open(model), at::kDouble, device());
    const at::Tensor logits = other.forward(ids);
    EXPECT_EQ(logits.device().type(), GetParam());
    EXPECT_LT(relative_difference(logits.cpu(), cpu.forward(ids)), 1e-10);
    const std::vector<int64_t> prompt = {3, 14, 15, 92, 6, 5, 35};
    for (const double temperature : {0.0, 1.0}) {
      const GenerateOptions options{
          .max_new_tokens = 24, .temperature = temperature, .top_p = 0.9, .seed = 2, .stop_ids = {}};
      EXPECT_EQ(generate(other, prompt, options, {}).ids, generate(cpu, prompt, options, {}).ids) << temperature;
    }
  }
};

TEST_P(ModelOnADevice, ComputesAndGeneratesWhatTheCpuDoes) {
  for (const GoldenCase& test_case : golden_cases()) {
    SCOPED_TRACE(test_case.name);
    const GoldenModel golden(test_case);
    expect_equal(golden.path(), golden.ids());
  }
}

TEST_P(ModelOnADevice, StreamsLayerByLayerThroughRoundedCaches) {
  for (const GoldenCase& test_case : golden_families()) {
    SCOPED_TRACE(test_case.name);
    const GoldenModel golden(test_case);
    for (const int bits : {16, 4}) {
      std::vector<at::Tensor> logits;
      for (const at::Device on : {at::Device(at::kCPU), device()}) {
        stream_logits(golden.open(), golden.ids(), {.dtype = at::kDouble, .device = on, .cache = {.bits = bits}},
                      [&](int64_t, const at::Tensor& some) { logits.push_back(some.cpu()); });
      }
      ASSERT_EQ(logits.size(), 2u);
      EXPECT_LT(relative_difference(logits[1], logits[0]), 1e-10) << bits;
    }
  }
}

TEST_P(ModelOnADevice, TakesLatentLayers) {
  for (const char* name : {"llama_gqa", "qwen2", "qwen3", "gemma2", "mistral"}) {
    SCOPED_TRACE(name);
    const GoldenModel golden({name});
    const auto source = golden.open();
    const LatentModel model = with_latent_layers(*source, {{1, {.rank = 20, .nope = 6, .rotary = 4, .value = 10}}});
    const TempFolder folder;
    write_latent_model(model, *source, {.output = folder / "out", .format = "native", .dtype = "f64"});
    expect_equal(folder / "out", golden.ids());
  }
}

INSTANTIATE_TEST_SUITE_P(TestDevice, ModelOnADevice, testing::Values(at::kPrivateUse1));
INSTANTIATE_TEST_SUITE_P(Cuda, ModelOnADevice, testing::Values(at::kCUDA));

}  // namespace
}  // namespace cinch
