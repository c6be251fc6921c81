// Evaluation on a device: every operation finds its tensors there, and the numbers are those of the CPU.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "eval/evaluate.h"
#include "tests/eval/golden.h"
#include "tests/support/device/device_under_test.h"

namespace cinch {
namespace {

class EvaluateOnADevice : public testing::TestWithParam<at::DeviceType> {};

TEST_P(EvaluateOnADevice, GivesTheNumbersOfTheCpu) {
  const std::string missing = missing_device(GetParam());
  if (!missing.empty()) GTEST_SKIP() << missing;
  const auto ids = golden_eval()["ids"].get<std::vector<int64_t>>();
  const EvalModel a{"a", golden_model("model")}, b{"b", golden_model("reference")};
  for (const char* protocol : {"ppl-gptq-48", "ppl-stride-40-16", "ppl-llamacpp-32"}) {
    EvalOptions options;
    options.protocol = parse_protocol(protocol);
    options.dtype = at::kDouble;
    options.caches = {{.bits = 4}};
    options.bos_id = 1;
    const EvalReport cpu = evaluate({a}, b, ids, options);
    options.device = device_under_test(GetParam());
    const EvalReport device = evaluate({a}, b, ids, options);
    ASSERT_EQ(device.rows.size(), cpu.rows.size());
    for (size_t i = 0; i < cpu.rows.size(); ++i) {
      const EvalRow &found = device.rows[i], &expected = cpu.rows[i];
      EXPECT_EQ(found.kv_bytes_per_token, expected.kv_bytes_per_token);
      EXPECT_NEAR(found.perplexity.value, expected.perplexity.value, 1e-9 * expected.perplexity.value) << protocol;
      ASSERT_EQ(found.fidelity.has_value(), expected.fidelity.has_value());
      if (!found.fidelity) continue;
      EXPECT_NEAR(found.fidelity->kl_mean, expected.fidelity->kl_mean, 1e-9) << protocol;
      EXPECT_EQ(found.fidelity->top1_agreement, expected.fidelity->top1_agreement) << protocol;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(TestDevice, EvaluateOnADevice, testing::Values(at::kPrivateUse1));
INSTANTIATE_TEST_SUITE_P(Cuda, EvaluateOnADevice, testing::Values(at::kCUDA));

}  // namespace
}  // namespace cinch
