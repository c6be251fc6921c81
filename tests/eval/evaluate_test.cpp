#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/errors.h"
#include "eval/perplexity.h"
#include "tests/eval/golden.h"
#include "tests/model/latent_model.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

EvalReport run(const std::string& protocol, bool with_reference, at::ScalarType dtype = at::kFloat) {
  EvalOptions options;
  options.protocol = parse_protocol(protocol);
  options.dtype = dtype;
  options.bos_id = 1;
  const auto ids = golden_eval()["ids"].get<std::vector<int64_t>>();
  return evaluate(golden_model("model"), with_reference ? golden_model("reference") : nullptr, ids, options);
}

class EvaluateGolden : public testing::TestWithParam<std::string> {};

TEST_P(EvaluateGolden, EqualsTransformers) {
  const Json expected = golden_eval()["protocols"][GetParam()];
  const EvalReport report = run(GetParam(), true);
  const auto near = [&](double value, const char* key) {
    const double want = expected[key].get<double>();
    EXPECT_NEAR(value, want, 2e-5 * std::max(1e-2, std::abs(want))) << key;
  };
  near(report.perplexity.value, "perplexity");
  near(report.perplexity.stderr_value, "stderr");
  near(report.reference_perplexity->value, "reference_perplexity");
  EXPECT_EQ(report.perplexity.protocol, GetParam());
  EXPECT_EQ(report.perplexity.tokens, expected["tokens"].get<int64_t>());
  EXPECT_EQ(report.perplexity.windows, expected["windows"].get<int64_t>());
  const FidelityReport& fidelity = report.fidelity.value();
  near(fidelity.kl_mean, "kl_mean");
  near(fidelity.kl_median, "kl_median");
  near(fidelity.kl_p99, "kl_p99");
  near(fidelity.kl_max, "kl_max");
  near(fidelity.top1_agreement, "top1_agreement");
  near(fidelity.true_probability_change_mean, "change_mean");
  near(fidelity.true_probability_change_rms, "change_rms");
  EXPECT_EQ(fidelity.tokens, report.perplexity.tokens);
}
INSTANTIATE_TEST_SUITE_P(Protocols, EvaluateGolden,
                         testing::Values("ppl-gptq-48", "ppl-stride-40-16", "ppl-llamacpp-32"), [](const auto& test) {
                           return std::string(test.param.substr(4, test.param.find('-', 4) - 4));
                         });

TEST(Evaluate, AModelIsItself) {
  EvalOptions options;
  options.protocol = parse_protocol("ppl-gptq-48");
  const auto ids = golden_eval()["ids"].get<std::vector<int64_t>>();
  const EvalReport report = evaluate(golden_model("model"), golden_model("model"), ids, options);
  EXPECT_EQ(report.fidelity->kl_max, 0);
  EXPECT_EQ(report.fidelity->top1_agreement, 1);
  EXPECT_EQ(report.fidelity->yardstick, "Q8");
  EXPECT_EQ(report.perplexity.value, report.reference_perplexity->value);
  EXPECT_EQ(report.kv_ratio, 1.0);
}

TEST(Evaluate, MeasuresTheCache) {
  const EvalReport report = run("ppl-gptq-48", false);
  EXPECT_EQ(report.kv_bytes_per_token, 2 * 2 * 3 * 4 * 2);  // layers x (k, v) x 3 KV heads x 4 x 2 bytes
  EXPECT_FALSE(report.fidelity.has_value());
}

TEST(Evaluate, MeasuresTheCacheOfLatentLayers) {
  const auto source = golden_model("model");
  const LatentModel model = with_latent_layers(*source, {{1, {.rank = 9, .nope = 3, .rotary = 4, .value = 5}}});
  TempFolder folder;
  write_latent_model(model, *source, {.output = folder / "out", .format = "native"});
  EvalOptions options;
  options.protocol = parse_protocol("ppl-gptq-48");
  const auto ids = golden_eval()["ids"].get<std::vector<int64_t>>();
  const EvalReport report = evaluate(ModelSource::open(folder / "out"), source, ids, options);
  EXPECT_EQ(report.kv_bytes_per_token, 2 * (2 * 3 * 4 + 9 + 4));  // one layer of 3 KV heads x 4, one latent
  EXPECT_DOUBLE_EQ(report.kv_ratio, 37.0 / 48);
  EXPECT_GT(report.fidelity->kl_mean, 0);
}

TEST(Evaluate, FloatEqualsDouble) {
  EXPECT_NEAR(run("ppl-gptq-48", false).perplexity.mean_nll, run("ppl-gptq-48", false, at::kDouble).perplexity.mean_nll,
              1e-6);
}

TEST(Evaluate, MaxTokensCutsTheText) {
  EvalOptions options;
  options.protocol = parse_protocol("ppl-gptq-48");
  options.protocol.max_tokens = 100;
  const auto ids = golden_eval()["ids"].get<std::vector<int64_t>>();
  EXPECT_EQ(evaluate(golden_model("model"), nullptr, ids, options).perplexity.tokens, 2 * 47);
}

TEST(Evaluate, RefusesForeignIdsAndShortTexts) {
  EvalOptions options;
  options.protocol = parse_protocol("ppl-gptq-48");
  EXPECT_THROW(evaluate(golden_model("model"), nullptr, std::vector<int64_t>(60, 61), options), UsageError);
  EXPECT_THROW(evaluate(golden_model("model"), nullptr, std::vector<int64_t>(60, -1), options), UsageError);
  EXPECT_THROW(evaluate(golden_model("model"), nullptr, std::vector<int64_t>(47, 5), options), UsageError);
}

}  // namespace
}  // namespace cinch
