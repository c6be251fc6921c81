// Models on a device: every operation finds its tensors there, and the results are those of the CPU.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "model/decoder_model.h"
#include "model/generator.h"
#include "tests/model/golden.h"
#include "tests/model/latent_model.h"
#include "tests/support/device/test_device.h"

namespace cinch {
namespace {

class ModelOnADevice : public testing::TestWithParam<GoldenCase> {
 protected:
  const GoldenModel golden_{GetParam()};
};

/// Logits, and what is generated greedily and by draws.
void expect_equal_on_device(const std::function<std::shared_ptr<ModelSource>()>& open, const at::Tensor& ids) {
  const DecoderModel cpu(open(), at::kDouble), device(open(), at::kDouble, test_device());
  const at::Tensor logits = device.forward(ids);
  EXPECT_EQ(logits.device(), test_device());
  EXPECT_LT(relative_difference(logits.cpu(), cpu.forward(ids)), 1e-12);
  const std::vector<int64_t> prompt = {3, 14, 15, 92, 6, 5, 35};
  for (const double temperature : {0.0, 1.0}) {
    const GenerateOptions options{
        .max_new_tokens = 24, .temperature = temperature, .top_p = 0.9, .seed = 2, .stop_ids = {}};
    EXPECT_EQ(generate(device, prompt, options, {}).ids, generate(cpu, prompt, options, {}).ids) << temperature;
  }
}

TEST_P(ModelOnADevice, ComputesAndGeneratesWhatTheCpuDoes) {
  expect_equal_on_device([&] { return golden_.open(); }, golden_.ids());
}

TEST_P(ModelOnADevice, StreamsLayerByLayerThroughRoundedCaches) {
  for (const int bits : {16, 4}) {
    std::vector<at::Tensor> logits;
    for (const at::Device device : {at::Device(at::kCPU), test_device()}) {
      stream_logits(golden_.open(), golden_.ids(), {.dtype = at::kDouble, .device = device, .cache = {.bits = bits}},
                    [&](int64_t, const at::Tensor& some) { logits.push_back(some.cpu()); });
    }
    ASSERT_EQ(logits.size(), 2u);
    EXPECT_LT(relative_difference(logits[1], logits[0]), 1e-10) << bits;
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, ModelOnADevice, testing::ValuesIn(golden_cases()), [](const auto& given) {
  std::string name = given.param.name;
  std::replace(name.begin(), name.end(), '/', '_');
  return name;
});

TEST(LatentModelOnADevice, ComputesAndGeneratesWhatTheCpuDoes) {
  for (const char* name : {"llama_gqa", "qwen2", "qwen3", "gemma2", "mistral"}) {
    const GoldenModel golden({name});
    const auto source = golden.open();
    const LatentModel model = with_latent_layers(*source, {{1, {.rank = 20, .nope = 6, .rotary = 4, .value = 10}}});
    const TempFolder folder;
    write_latent_model(model, *source, {.output = folder / "out", .format = "native", .dtype = "f64"});
    expect_equal_on_device([&] { return ModelSource::open(folder / "out"); }, golden.ids());
  }
}

}  // namespace
}  // namespace cinch
