#include "model/mixed_layers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "core/errors.h"
#include "model/model_family.h"

namespace cinch {
namespace {

using testing::HasSubstr;

Json stock_json(const std::string& type = "llama") {
  return {{"model_type", type},
          {"architectures", {"A"}},
          {"hidden_size", 48},
          {"num_hidden_layers", 3},
          {"intermediate_size", 64},
          {"vocab_size", 96},
          {"head_dim", 8},
          {"num_attention_heads", 6},
          {"num_key_value_heads", 2},
          {"max_position_embeddings", 64}};
}

ModelConfig parsed(const Json& json) {
  const JsonObject stock = stock_config(JsonObject(json, "config.json"));
  ModelConfig config = family_of_config(stock).parse(stock);
  read_layer_list(stock, config);
  return config;
}

AttentionSpec latent(AttentionSpec spec, std::vector<double> inv_freq) {
  spec.kind = AttentionKind::latent;
  spec.kv_lora_rank = 21;
  spec.qk_nope_head_dim = spec.qk_norm ? spec.head_dim : 5;
  spec.qk_rope_head_dim = 2 * static_cast<int64_t>(inv_freq.size());
  spec.v_head_dim = 7;
  spec.rope_inv_freq = std::move(inv_freq);
  spec.key_scale_tail = spec.qk_norm;
  return spec;
}

Json written(const ModelConfig& config) {
  Json json = model_family(config.family).to_json(config);
  write_layer_list(config, json);
  return json;
}

TEST(MixedLayers, StockModelsHaveNoList) {
  const ModelConfig config = parsed(stock_json());
  EXPECT_EQ(native_reason(config), "");
  EXPECT_FALSE(written(config).contains("cinch"));
  EXPECT_EQ(written(config)["model_type"], "llama");
}

TEST(MixedLayers, RoundTrip) {
  for (const char* family : {"llama", "qwen2", "qwen3", "gemma2"}) {
    ModelConfig config = parsed(stock_json(family));
    config.layers[0] = latent(config.layers[0], {1.0, 1.0 / 3, 1e-7, 0.0});
    config.layers[2] = latent(config.layers[2], {0.1});
    config.layers[2].output_bias = !config.layers[2].output_bias;
    config.layers[1].n_kv_heads = 3;
    EXPECT_THAT(native_reason(config), HasSubstr("latent"));
    EXPECT_TRUE(layers_differ(config));
    const Json json = parse_json(written(config).dump(), "config.json");
    EXPECT_EQ(parsed(json).layers, config.layers) << family;
  }
}

TEST(MixedLayers, SharedFrequenciesAreStoredOnce) {
  ModelConfig config = parsed(stock_json());
  config.layers[0] = latent(config.layers[0], {0.5, 0.25});
  config.layers[2] = latent(config.layers[2], {0.5, 0.25});
  Json json = written(config);
  EXPECT_EQ(json["cinch"]["rope_inv_freq"], Json::array({0.5, 0.25}));
  for (const Json& entry : json["cinch"]["layers"]) EXPECT_FALSE(entry.contains("rope_inv_freq"));
  EXPECT_EQ(parsed(json).layers, config.layers);
  config.layers[2].rope_inv_freq[1] = 0.125;
  json = written(config);
  EXPECT_FALSE(json["cinch"].contains("rope_inv_freq"));
  EXPECT_EQ(parsed(json).layers, config.layers);
}

// transformers and others would load a known type's folder and fill what they miss with random numbers.
TEST(MixedLayers, NoOtherProgramTakesTheFolderForAStockModel) {
  ModelConfig config = parsed(stock_json());
  config.layers[1] = latent(config.layers[1], {0.5});
  const Json json = written(config);
  EXPECT_EQ(json["model_type"], "cinch");
  EXPECT_EQ(json["cinch"]["model_type"], "llama");
  EXPECT_EQ(json["architectures"], Json::array({"CinchForCausalLM"}));
  EXPECT_EQ(parsed(json).source["model_type"], "llama");
  EXPECT_EQ(parsed(json).architecture, "LlamaForCausalLM");
}

// As written before layers had a kind.
TEST(MixedLayers, EntriesWithoutAKindAreGroupedQuery) {
  Json json = stock_json();
  json["cinch"] = {
      {"layers", {{{"num_key_value_heads", 1}}, {{"num_key_value_heads", 2}}, {{"num_key_value_heads", 3}}}}};
  const ModelConfig config = parsed(json);
  EXPECT_EQ(config.layers[0].n_kv_heads, 1);
  EXPECT_EQ(config.layers[2].n_kv_heads, 3);
  EXPECT_EQ(native_reason(config), "its layers have different KV heads");
}

/// What reading says after `spoil` changed the list of a good config.
std::string fault_of(const std::string& family, const std::function<void(Json& native)>& spoil) {
  ModelConfig config = parsed(stock_json(family));
  config.layers[0] = latent(config.layers[0], {0.5, 0.25});
  config.layers[1] = latent(config.layers[1], {0.5});
  Json json = written(config);
  spoil(json["cinch"]);
  try {
    parsed(json);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "nothing thrown";
}

TEST(MixedLayers, FaultsNameTheirPath) {
  const auto set = [](const char* key, const Json& value) {
    return fault_of("llama", [&](Json& native) { native["layers"][1][key] = value; });
  };
  const std::string at = "config.json: cinch.layers[1].";
  EXPECT_EQ(fault_of("llama", [](Json&) {}), "nothing thrown");
  EXPECT_THAT(fault_of("llama", [](Json& native) { native["layers"].erase(2); }),
              HasSubstr("config.json: cinch.layers: 2 entries for 3 layers"));
  EXPECT_THAT(fault_of("llama", [](Json& native) { native["layers"][1] = 5; }), HasSubstr("cinch.layers[1]"));
  EXPECT_THAT(set("kind", "latant"), HasSubstr(at + "kind"));
  EXPECT_THAT(set("kind", "grouped_query"), HasSubstr("has no such key"));
  EXPECT_THAT(set("num_key_value_heads", 4), HasSubstr(at + "num_key_value_heads: 4"));
  EXPECT_THAT(set("num_key_value_heads", 0), HasSubstr(at + "num_key_value_heads: 0"));
  EXPECT_THAT(set("kv_lora_rank", 0), HasSubstr(at + "kv_lora_rank: 0"));
  EXPECT_THAT(set("kv_lora_rank", -8), HasSubstr(at + "kv_lora_rank: -8"));
  EXPECT_THAT(set("kv_lora_rank", int64_t{1} << 50), HasSubstr(at + "kv_lora_rank"));
  EXPECT_THAT(set("kv_lora_rank", "21"), HasSubstr(at + "kv_lora_rank"));
  EXPECT_THAT(set("kv_lora_rank", nullptr), HasSubstr(at + "kv_lora_rank: the key is missing"));
  EXPECT_THAT(set("qk_nope_head_dim", -1), HasSubstr(at + "qk_nope_head_dim: -1"));
  EXPECT_THAT(set("qk_rope_head_dim", 3), HasSubstr(at + "qk_rope_head_dim: 3 is odd"));
  EXPECT_THAT(set("qk_rope_head_dim", -2), HasSubstr(at + "qk_rope_head_dim: -2"));
  EXPECT_THAT(set("qk_rope_head_dim", 4), HasSubstr(at + "rope_inv_freq: 1 frequencies"));
  EXPECT_THAT(set("v_head_dim", 0), HasSubstr(at + "v_head_dim: 0"));
  EXPECT_THAT(set("rope_inv_freq", Json::array({0.5, 0.5})), HasSubstr(at + "rope_inv_freq: 2 frequencies"));
  EXPECT_THAT(set("rope_inv_freq", Json::array({-0.5})), HasSubstr(at + "rope_inv_freq[0]: -0.5"));
  EXPECT_THAT(set("rope_inv_freq", Json::array({std::numeric_limits<double>::infinity()})),
              HasSubstr(at + "rope_inv_freq[0]: inf"));
  EXPECT_THAT(set("rope_inv_freq", Json::array({"0.5"})), HasSubstr(at + "rope_inv_freq"));
  EXPECT_THAT(set("rope_inv_freq", nullptr), HasSubstr(at + "rope_inv_freq"));
  EXPECT_THAT(set("key_scale_tail", true), HasSubstr(at + "key_scale_tail: true"));
  EXPECT_THAT(set("kv_lora_rnk", 4), HasSubstr("\"kv_lora_rank\""));
  EXPECT_THAT(fault_of("llama",
                       [](Json& native) {
                         native["layers"][0]["qk_nope_head_dim"] = native["layers"][0]["qk_rope_head_dim"] = 0;
                         native["layers"][0]["rope_inv_freq"] = Json::array();
                       }),
              HasSubstr("at least one number"));
  EXPECT_THAT(fault_of("llama", [](Json& native) { native.erase("model_type"); }), HasSubstr("cinch.model_type"));
}

TEST(MixedLayers, NormalisedKeysNeedTheirScalesAndWholeQueries) {
  EXPECT_EQ(fault_of("qwen3", [](Json&) {}), "nothing thrown");
  EXPECT_THAT(fault_of("qwen3", [](Json& native) { native["layers"][0]["key_scale_tail"] = false; }),
              HasSubstr("cinch.layers[0].key_scale_tail: false"));
  EXPECT_THAT(fault_of("qwen3", [](Json& native) { native["layers"][0]["qk_nope_head_dim"] = 7; }),
              HasSubstr("cinch.layers[0].qk_nope_head_dim: 7"));
}

}  // namespace
}  // namespace cinch
