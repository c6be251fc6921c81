#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/errors.h"
#include "eval/evaluate.h"
#include "tests/eval/golden.h"
#include "tests/model/latent_model.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

/// One model at 16 bits, with or without a reference.
EvalReport evaluate_one(std::shared_ptr<ModelSource> model, std::shared_ptr<ModelSource> reference,
                        const std::vector<int64_t>& ids, const EvalOptions& options) {
  std::optional<EvalModel> other;
  if (reference) other = {"reference", std::move(reference)};
  return evaluate({{"model", std::move(model)}}, other, ids, options);
}

EvalReport run(const std::string& protocol, bool with_reference, at::ScalarType dtype = at::kFloat) {
  EvalOptions options;
  options.protocol = parse_protocol(protocol);
  options.dtype = dtype;
  options.bos_id = 1;
  const auto ids = golden_eval()["ids"].get<std::vector<int64_t>>();
  return evaluate_one(golden_model("model"), with_reference ? golden_model("reference") : nullptr, ids, options);
}

class EvaluateGolden : public testing::TestWithParam<std::string> {};

TEST_P(EvaluateGolden, EqualsTransformers) {
  const Json expected = golden_eval()["protocols"][GetParam()];
  const EvalReport report = run(GetParam(), true);
  const EvalRow& model = report.first_model();
  const auto near = [&](double value, const char* key) {
    const double want = expected[key].get<double>();
    EXPECT_NEAR(value, want, 2e-5 * std::max(1e-2, std::abs(want))) << key;
  };
  near(model.perplexity.value, "perplexity");
  near(model.perplexity.stderr_value, "stderr");
  near(report.reference()->perplexity.value, "reference_perplexity");
  EXPECT_EQ(model.perplexity.protocol, GetParam());
  EXPECT_EQ(model.perplexity.tokens, expected["tokens"].get<int64_t>());
  EXPECT_EQ(model.perplexity.windows, expected["windows"].get<int64_t>());
  const FidelityReport& fidelity = model.fidelity.value();
  near(fidelity.kl_mean, "kl_mean");
  near(fidelity.kl_median, "kl_median");
  near(fidelity.kl_p99, "kl_p99");
  near(fidelity.kl_max, "kl_max");
  near(fidelity.top1_agreement, "top1_agreement");
  near(fidelity.true_probability_change_mean, "change_mean");
  near(fidelity.true_probability_change_rms, "change_rms");
  EXPECT_EQ(fidelity.tokens, model.perplexity.tokens);
}
INSTANTIATE_TEST_SUITE_P(Protocols, EvaluateGolden,
                         testing::Values("ppl-gptq-48", "ppl-stride-40-16", "ppl-llamacpp-32"), [](const auto& test) {
                           return std::string(test.param.substr(4, test.param.find('-', 4) - 4));
                         });

TEST(Evaluate, AModelIsItself) {
  EvalOptions options;
  options.protocol = parse_protocol("ppl-gptq-48");
  const auto ids = golden_eval()["ids"].get<std::vector<int64_t>>();
  const EvalReport report = evaluate_one(golden_model("model"), golden_model("model"), ids, options);
  const EvalRow& model = report.first_model();
  EXPECT_EQ(model.fidelity->kl_max, 0);
  EXPECT_EQ(model.fidelity->top1_agreement, 1);
  EXPECT_EQ(model.fidelity->yardstick, "Q8");
  EXPECT_EQ(model.perplexity.value, report.reference()->perplexity.value);
  EXPECT_EQ(model.kv_ratio, 1.0);
}

TEST(Evaluate, MeasuresTheCache) {
  const EvalReport report = run("ppl-gptq-48", false);
  EXPECT_EQ(report.rows.size(), 1u);
  EXPECT_EQ(report.reference(), nullptr);
  const EvalRow& model = report.first_model();
  EXPECT_EQ(model.kv_bytes_per_token, 2 * 2 * 3 * 4 * 2);  // layers x (k, v) x 3 KV heads x 4 x 2 bytes
  EXPECT_EQ(model.bits_per_number, 16);
  EXPECT_FALSE(model.fidelity.has_value());
}

TEST(Evaluate, MeasuresTheCacheOfLatentLayers) {
  const auto source = golden_model("model");
  const LatentModel model = with_latent_layers(*source, {{1, {.rank = 9, .nope = 3, .rotary = 4, .value = 5}}});
  TempFolder folder;
  write_latent_model(model, *source, {.output = folder / "out", .format = "native"});
  EvalOptions options;
  options.protocol = parse_protocol("ppl-gptq-48");
  const auto ids = golden_eval()["ids"].get<std::vector<int64_t>>();
  options.caches = {{.bits = 4}};
  const EvalReport report = evaluate_one(ModelSource::open(folder / "out"), source, ids, options);
  const EvalRow& whole = report.first_model();
  EXPECT_EQ(whole.kv_bytes_per_token, 2 * (2 * 3 * 4 + 9 + 4));  // one layer of 3 KV heads x 4, one latent
  EXPECT_DOUBLE_EQ(whole.kv_ratio, 37.0 / 48);
  EXPECT_GT(whole.fidelity->kl_mean, 0);
  // Keys 4.5 bits, values in groups of the 4 of their head 4 + 32 / 4, the latent and its rotated key 4.5.
  const EvalRow& rounded = report.rows.back();
  EXPECT_DOUBLE_EQ(rounded.kv_bytes_per_token, (12 * (4.5 + 12) + 13 * 4.5) / 8);
  EXPECT_DOUBLE_EQ(rounded.bits_per_number, (12 * (4.5 + 12) + 13 * 4.5) / 37);
  EXPECT_DOUBLE_EQ(rounded.kv_ratio, rounded.kv_bytes_per_token / 96);
}

void expect_near(const EvalRow& a, const EvalRow& b, double tolerance) {
  EXPECT_EQ(a.kv_bytes_per_token, b.kv_bytes_per_token);
  EXPECT_EQ(a.kv_ratio, b.kv_ratio);
  EXPECT_NEAR(a.perplexity.value, b.perplexity.value, tolerance * b.perplexity.value);
  EXPECT_NEAR(a.perplexity.stderr_value, b.perplexity.stderr_value, tolerance * b.perplexity.value);
  EXPECT_EQ(a.perplexity.tokens, b.perplexity.tokens);
  ASSERT_EQ(a.fidelity.has_value(), b.fidelity.has_value());
  if (!a.fidelity) return;
  EXPECT_NEAR(a.fidelity->kl_mean, b.fidelity->kl_mean, tolerance);
  EXPECT_NEAR(a.fidelity->kl_max, b.fidelity->kl_max, tolerance);
  EXPECT_NEAR(a.fidelity->top1_agreement, b.fidelity->top1_agreement, tolerance);
  EXPECT_EQ(a.fidelity->tokens, b.fidelity->tokens);
}

/// Two models of two precisions each beside a reference, and the same numbers from runs of their own.
TEST(Evaluate, ATableIsItsSingleRuns) {
  for (const char* protocol : {"ppl-gptq-48", "ppl-stride-40-16"}) {
    EvalOptions options;
    options.protocol = parse_protocol(protocol);
    options.dtype = at::kDouble;
    options.caches = {{.bits = 8}, {.bits = 2}};
    const auto ids = golden_eval()["ids"].get<std::vector<int64_t>>();
    const EvalModel a{"a", golden_model("model")}, b{"b", golden_model("reference")};
    const EvalReport table = evaluate({a, b}, a, ids, options);
    const std::vector<EvalModel> order = {a, a, b};
    ASSERT_EQ(table.rows.size(), 9u);
    for (size_t i = 0; i < 9; ++i) {
      const EvalModel& model = order[i / 3];
      EXPECT_EQ(table.rows[i].model, model.name);
      EXPECT_EQ(table.rows[i].of_reference, i < 3);
      EXPECT_EQ(table.rows[i].cache.bits, (std::vector<int>{16, 8, 2}[i % 3]));
      EvalOptions alone = options;
      alone.caches.clear();
      if (i % 3 > 0) alone.caches = {table.rows[i].cache};
      const EvalReport single = evaluate({model}, a, ids, alone);
      expect_near(table.rows[i], i == 0 ? *single.reference() : single.rows.back(), 1e-12);
    }
    EXPECT_EQ(table.rows[3].fidelity->kl_max, 0);
    // Fewer bits do more damage, and never none.
    EXPECT_GT(table.rows[1].fidelity->kl_mean, 1e-9);
    EXPECT_GT(table.rows[2].fidelity->kl_mean, 10 * table.rows[1].fidelity->kl_mean);
    EXPECT_EQ(table.rows_by_bytes().front().cache.bits, 16);
    EXPECT_EQ(table.rows_by_bytes().back().cache.bits, 2);
  }
}

/// The rows of fewer bits against the whole model run window by window with caches of that precision.
TEST(Evaluate, RoundsTheCacheOfEveryWindow) {
  EvalOptions options;
  options.protocol = parse_protocol("ppl-gptq-48");
  options.dtype = at::kDouble;
  options.caches = {{.bits = 3}};
  const auto ids = golden_eval()["ids"].get<std::vector<int64_t>>();
  const EvalReport report = evaluate_one(golden_model("model"), nullptr, ids, options);
  const DecoderModel model(golden_model("model"), at::kDouble);
  double sum = 0;
  int64_t count = 0;
  for (size_t begin = 0; begin + 48 <= ids.size(); begin += 48, count += 47) {
    const at::Tensor window =
        at::tensor(std::vector<int64_t>(ids.begin() + begin, ids.begin() + begin + 48), at::kLong);
    std::vector<KvCache> caches(static_cast<size_t>(model.config().n_layers), KvCache({.bits = 3}));
    const at::Tensor logits = model.forward(window.unsqueeze(0), &caches)[0].narrow(0, 0, 47);
    const at::Tensor targets = window.narrow(0, 1, 47).unsqueeze(1);
    sum -= at::log_softmax(logits, 1).gather(1, targets).sum().item<double>();
  }
  EXPECT_EQ(report.rows.back().perplexity.tokens, count);
  EXPECT_NEAR(report.rows.back().perplexity.mean_nll, sum / static_cast<double>(count), 1e-12);
  EXPECT_GT(std::abs(report.rows.back().perplexity.mean_nll - report.rows.front().perplexity.mean_nll), 1e-6);
}

/// Latent layers as a packed cache serves them, grouped-query layers in 16 bits.
TEST(Evaluate, ServedFormatsAreThoseOfPackedCaches) {
  const auto golden = golden_model("model");
  const LatentModel latent = with_latent_layers(*golden, {{1, {.rank = 9, .nope = 3, .rotary = 4, .value = 5}}});
  TempFolder folder;
  write_latent_model(latent, *golden, {.output = folder / "out", .format = "native"});
  const auto source = ModelSource::open(folder / "out");
  EvalOptions options;
  options.protocol = parse_protocol("ppl-gptq-48");
  options.caches = {parse_cache_precision("int8-token"), parse_cache_precision("fp8")};
  const auto ids = golden_eval()["ids"].get<std::vector<int64_t>>();
  const EvalReport report = evaluate_one(source, nullptr, ids, options);
  const DecoderModel model(source, at::kFloat);
  ASSERT_EQ(model.config().n_layers, 2);
  for (const size_t row : {1, 2}) {
    const EvalRow& found = report.rows.at(row);
    EXPECT_EQ(found.kv_bytes_per_token, 2 * 2 * 3 * 4 + (16 + 4));  // the row padded to 16 bytes, two scales
    double sum = 0;
    for (size_t begin = 0; begin + 48 <= ids.size(); begin += 48) {
      const at::Tensor window =
          at::tensor(std::vector<int64_t>(ids.begin() + begin, ids.begin() + begin + 48), at::kLong);
      std::vector<KvCache> caches = {KvCache(), KvCache(found.cache.served, CacheColumns{9, 4, 0})};
      const at::Tensor logits = model.forward(window.unsqueeze(0), &caches)[0].narrow(0, 0, 47);
      sum -= at::log_softmax(logits, 1).gather(1, window.narrow(0, 1, 47).unsqueeze(1)).sum().item<double>();
    }
    EXPECT_NEAR(found.perplexity.mean_nll, sum / static_cast<double>(found.perplexity.tokens), 1e-5);
    EXPECT_GT(std::abs(found.perplexity.mean_nll - report.rows[0].perplexity.mean_nll), 1e-6);
  }
}

TEST(Evaluate, WithoutAReferenceTheFirstModelIsTheMeasureOfBytes) {
  EvalOptions options;
  options.protocol = parse_protocol("ppl-gptq-48");
  options.caches = {{}, {.bits = 8}};  // 16 bits are there anyway
  const auto ids = golden_eval()["ids"].get<std::vector<int64_t>>();
  const EvalReport report =
      evaluate({{"a", golden_model("model")}, {"b", golden_model("reference")}}, std::nullopt, ids, options);
  ASSERT_EQ(report.rows.size(), 4u);
  const double bytes = report.rows[0].kv_bytes_per_token;
  for (const EvalRow& row : report.rows) {
    EXPECT_FALSE(row.fidelity.has_value());
    EXPECT_EQ(row.kv_ratio, row.kv_bytes_per_token / bytes);
  }
  EXPECT_EQ(report.rows[0].kv_ratio, 1);
  EXPECT_NEAR(report.rows[1].perplexity.value, report.rows[0].perplexity.value, 0.01 * report.rows[0].perplexity.value);
  EXPECT_NE(report.rows[1].perplexity.value, report.rows[0].perplexity.value);
}

TEST(Evaluate, RefusesOtherVocabulariesByName) {
  EvalOptions options;
  options.protocol = parse_protocol("ppl-gptq-48");
  const EvalModel tiny{"tiny", golden_model("model")};
  const EvalModel stories{"stories", ModelSource::open(repo_file("examples/stories260K"))};
  const std::vector<int64_t> ids(60, 5);
  const auto expect_refused = [&](const std::vector<EvalModel>& models, const std::optional<EvalModel>& reference) {
    try {
      evaluate(models, reference, ids, options);
      ADD_FAILURE();
    } catch (const UsageError& error) {
      EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr("tiny"), testing::HasSubstr("61"),
                                               testing::HasSubstr("stories has a vocabulary of 512")));
    }
  };
  expect_refused({tiny, stories}, std::nullopt);
  expect_refused({tiny, {"same", tiny.source}, stories}, tiny);
}

TEST(Evaluate, FloatEqualsDouble) {
  EXPECT_NEAR(run("ppl-gptq-48", false).first_model().perplexity.mean_nll,
              run("ppl-gptq-48", false, at::kDouble).first_model().perplexity.mean_nll, 1e-6);
}

TEST(Evaluate, MaxTokensCutsTheText) {
  EvalOptions options;
  options.protocol = parse_protocol("ppl-gptq-48");
  options.protocol.max_tokens = 100;
  const auto ids = golden_eval()["ids"].get<std::vector<int64_t>>();
  EXPECT_EQ(evaluate_one(golden_model("model"), nullptr, ids, options).first_model().perplexity.tokens, 2 * 47);
}

TEST(Evaluate, RefusesForeignIdsAndShortTexts) {
  EvalOptions options;
  options.protocol = parse_protocol("ppl-gptq-48");
  EXPECT_THROW(evaluate_one(golden_model("model"), nullptr, std::vector<int64_t>(60, 61), options), UsageError);
  EXPECT_THROW(evaluate_one(golden_model("model"), nullptr, std::vector<int64_t>(60, -1), options), UsageError);
  EXPECT_THROW(evaluate_one(golden_model("model"), nullptr, std::vector<int64_t>(47, 5), options), UsageError);
}

}  // namespace
}  // namespace cinch
