// The table of refusals: for every rule a model that breaks it.
#include "model/export/runtime_rules.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>

#include "core/errors.h"
#include "core/files.h"
#include "tests/model/golden.h"
#include "tests/model/latent_model.h"

namespace cinch {
namespace {

ModelConfig golden(const std::string& name) { return GoldenModel({name}).open()->config(); }

/// A Llama whose layers are latent, in what every runtime can hold: 512 + 64 numbers, one base.
ModelConfig latent(const std::string& family = "llama_gqa") {
  ModelConfig config = golden(family);
  for (AttentionSpec& spec : config.layers) {
    spec = latent_spec(spec, {.rank = 512, .nope = 8, .rotary = 64, .value = 8});
    spec.window = 0;
    spec.softcap = 0;
    for (size_t slot = 0; slot < 32; ++slot) spec.rope_inv_freq[slot] = std::exp(-0.2 * static_cast<double>(slot));
  }
  config.final_logit_softcap = 0;
  return config;
}

/// Of the class itself, as an export is read back.
ModelConfig stock(double eps = 1e-6) {
  ModelConfig config = golden("deepseek_v3_narrow");
  config.rms_norm_eps = eps;
  for (AttentionSpec& spec : config.layers) {
    spec.kv_lora_rank = 568;
    spec.down_bias = spec.output_bias = false;
    spec.rope_inv_freq = {1.0, 0.1, 0.01, 0.001};
  }
  return config;
}

struct Refusal {
  std::string rule, runtime;
  std::function<ModelConfig()> model;
  std::string says;
  bool approximable = false;
};

ModelConfig with(ModelConfig config, const std::function<void(ModelConfig&)>& change) {
  change(config);
  return config;
}
ModelConfig with_layers(ModelConfig config, const std::function<void(AttentionSpec&)>& change) {
  for (AttentionSpec& spec : config.layers) change(spec);
  return config;
}
ModelConfig repeated_frequency() {
  return with_layers(latent(), [](AttentionSpec& spec) { spec.rope_inv_freq[3] = spec.rope_inv_freq[4]; });
}

std::vector<Refusal> refusals() {
  using Spec = AttentionSpec;
  std::vector<Refusal> list = {
      {"stock/kv-heads", "hf",
       [] { return with(golden("llama_gqa"), [](ModelConfig& c) { c.layers[1].n_kv_heads = 1; }); },
       "these layers differ"},
      {"stock/head-sizes", "hf", [] { return with(latent(), [](ModelConfig& c) { c.layers[1].v_head_dim = 4; }); },
       "heads of different sizes"},
      {"stock/one-kind", "vllm",
       [] { return with(latent(), [](ModelConfig& c) { c.layers[1] = golden("llama_gqa").layers[1]; }); },
       "some of its layers have latent attention"},
      {"stock/shared-frequencies", "sglang",
       [] { return with(latent(), [](ModelConfig& c) { c.layers[1].rope_inv_freq[5] *= 1.01; }); }, "have their own"},
      {"stock/post-norms", "hf", [] { return latent("gemma2"); }, "norms after attention"},
      {"stock/qk-norm", "hf", [] { return latent("qwen3"); }, "scale of each key"},
      {"stock/soft-caps", "hf", [] { return with_layers(latent(), [](Spec& s) { s.softcap = 30; }); }, "soft caps",
       true},
      {"stock/soft-caps", "llama.cpp",
       [] { return with(latent(), [](ModelConfig& c) { c.final_logit_softcap = 30; }); }, "soft caps", true},
      {"stock/window", "hf", [] { return with_layers(latent("mistral"), [](Spec& s) { s.window = 7; }); },
       "of 7 tokens", true},
      {"stock/query-bias", "vllm", [] { return latent("qwen2"); }, "biases of queries", true},
      {"stock/mlp-bias", "hf", [] { return latent("llama_bias"); }, "biases in its MLP", true},
      {"llama.cpp/frequency-table", "llama.cpp", repeated_frequency, "a list of their own"},
      {"llama.cpp/fast-linear", "llama.cpp",
       [] {
         return with_layers(latent(), [](Spec& s) {
           for (double& f : s.rope_inv_freq) f *= 2;
         });
       },
       "above one radian"},
      {"llama.cpp/one-eps", "llama.cpp", [] { return stock(1e-5); }, "1e-06 on the latent and 1e-05 elsewhere"},
      {"llama.cpp/latent-biases", "llama.cpp", [] { return with_layers(stock(), [](Spec& s) { s.down_bias = true; }); },
       "no biases in latent attention", true},
      {"llama.cpp/activation", "llama.cpp",
       [] { return with(latent(), [](ModelConfig& c) { c.activation = Activation::gelu; }); }, "another activation"},
      {"llama.cpp/biases", "llama.cpp", [] { return with(golden("qwen2"), [](ModelConfig& c) { c.mlp_bias = true; }); },
       "architecture qwen2 has no biases"},
      {"llama.cpp/window", "llama.cpp", [] { return golden("mistral"); }, "of 7 tokens would be ignored", true},
      {"llama.cpp/gemma2-scale", "llama.cpp", [] { return golden("gemma2"); }, "query_pre_attn_scalar is 24", true},
      {"llama.cpp/gemma2-pattern", "llama.cpp",
       [] { return with_layers(golden("gemma2"), [](Spec& s) { s.window = 6; }); }, "every second one"},
      {"llama.cpp/gemma2-soft-caps", "llama.cpp",
       [] { return with(golden("gemma2"), [](ModelConfig& c) { c.final_logit_softcap = 0; }); }, "switched off"},
      {"llama.cpp/rope-scaling", "llama.cpp", [] { return golden("rope/dynamic"); }, "\"dynamic\""},
      {"llama.cpp/rope-scaling", "llama.cpp", [] { return golden("rope/yarn_mscale"); }, "own betas"},
      {"vllm/cache-width", "vllm", [] { return with_layers(latent(), [](Spec& s) { s.kv_lora_rank = 80; }); },
       "80 + 64 = 144"},
  };
  for (const char* runtime : {"vllm", "sglang"}) {
    const auto id = [&](const char* rule) { return fmt::format("{}/{}", runtime, rule); };
    list.push_back({id("frequency-table"), runtime, repeated_frequency, "YaRN"});
    list.push_back({id("latent-biases"), runtime,
                    [] { return with_layers(latent(), [](Spec& s) { s.output_bias = true; }); }, "no biases", true});
    list.push_back({id("activation"), runtime,
                    [] { return with(latent(), [](ModelConfig& c) { c.activation = Activation::gelu_tanh; }); },
                    "SiLU only"});
    list.push_back({id("latent-eps"), runtime, [] { return stock(1e-5); }, "here 1e-05"});
    list.push_back({id("tied-head"), runtime,
                    [] { return with(stock(), [](ModelConfig& c) { c.tie_word_embeddings = true; }); },
                    "tie the head"});
  }
  return list;
}

TEST(RuntimeRules, EveryRuleRefusesWithItsIdAndAWayOut) {
  std::set<std::string> seen;
  for (const Refusal& refusal : refusals()) {
    SCOPED_TRACE(refusal.rule + " " + refusal.runtime);
    seen.insert(refusal.rule);
    const ModelConfig model = refusal.model();
    try {
      require_runtime(model, refusal.runtime, /*approximate=*/false);
      ADD_FAILURE() << "not refused";
    } catch (const UnsupportedError& error) {
      EXPECT_EQ(error.exit_code(), ExitCode::unsupported);
      EXPECT_THAT(error.what(), testing::HasSubstr("[" + refusal.rule + "] "));
      EXPECT_THAT(error.what(), testing::HasSubstr(refusal.says));
      EXPECT_FALSE(error.help().empty());
    }
  }
  EXPECT_GE(refusals().size(), 20u);
  for (const RuntimeRule& rule : runtime_rules()) EXPECT_TRUE(seen.contains(rule.id)) << rule.id << " is not exercised";
}

TEST(RuntimeRules, ApproximateExportsLeaveOutWhatTheyCan) {
  for (const Refusal& refusal : refusals()) {
    SCOPED_TRACE(refusal.rule + " " + refusal.runtime);
    const ModelConfig model = refusal.model();
    for (const BrokenRule& broken : broken_rules(model, refusal.runtime)) {
      if (broken.rule->id == refusal.rule) {
        EXPECT_EQ(broken.rule->approximable, refusal.approximable);
      }
    }
    if (!refusal.approximable) {
      EXPECT_THROW(require_runtime(model, refusal.runtime, /*approximate=*/true), UnsupportedError);
      continue;
    }
    const auto left_out = require_runtime(model, refusal.runtime, /*approximate=*/true);
    EXPECT_TRUE(std::any_of(left_out.begin(), left_out.end(),
                            [&](const BrokenRule& broken) { return broken.rule->id == refusal.rule; }));
  }
}

TEST(RuntimeRules, WhatAllRuntimesHoldBreaksNone) {
  for (const std::string& runtime : known_runtimes()) {
    EXPECT_TRUE(broken_rules(latent(), runtime).empty()) << runtime;
    EXPECT_TRUE(broken_rules(stock(), runtime).empty()) << runtime;
    EXPECT_TRUE(broken_rules(golden("llama_gqa"), runtime).empty()) << runtime;
  }
  for (const RuntimeVerdict& verdict : runtime_verdicts(latent())) {
    EXPECT_TRUE(verdict.loads);
    EXPECT_EQ(verdict.rule, "stock-latent");
    EXPECT_TRUE(verdict.way_out.empty());
  }
}

TEST(RuntimeRules, FactsNameWhereTheyComeFrom) {
  std::set<std::string> ids;
  for (const RuntimeRule& rule : runtime_rules()) {
    EXPECT_TRUE(ids.insert(rule.id).second) << rule.id << " twice";
    EXPECT_THAT(rule.checked, testing::AnyOf(testing::HasSubstr("run"), testing::HasSubstr("read"))) << rule.id;
    const std::string runtime = rule.runtime;
    EXPECT_THAT(rule.id, testing::StartsWith(runtime.empty() ? "stock/" : runtime + "/"));
  }
}

TEST(RuntimeRules, EveryRuleIsInTheDocumentation) {
  const std::string text = read_text(repo_file("docs/export.md"));
  for (const RuntimeRule& rule : runtime_rules()) {
    const size_t found = text.find("`" + std::string(rule.id) + "`");
    ASSERT_NE(found, std::string::npos) << rule.id;
    const std::string row = text.substr(found, text.find(" | ", found) - found);
    EXPECT_EQ(row.ends_with(" *"), rule.approximable) << rule.id;
  }
}

}  // namespace
}  // namespace cinch
