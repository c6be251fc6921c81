// The conformance suite of model families: every family of the list, through every golden model.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "core/errors.h"
#include "core/files.h"
#include "model/decoder_model.h"
#include "model/model_writer.h"
#include "tests/model/golden.h"

namespace cinch {
namespace {

class FamilyConformance : public testing::TestWithParam<GoldenCase> {};

bool same_rope(const RopeSpec& a, const RopeSpec& b) {
  return a.type == b.type && a.theta == b.theta && a.rotary_dim == b.rotary_dim && a.factor == b.factor &&
         a.original_max_position_embeddings == b.original_max_position_embeddings && a.short_factor == b.short_factor &&
         a.long_factor == b.long_factor && a.attention_factor == b.attention_factor;
}

void expect_same(const ModelConfig& a, const ModelConfig& b) {
  EXPECT_EQ(a.architecture, b.architecture);
  EXPECT_EQ(a.tie_word_embeddings, b.tie_word_embeddings);
  EXPECT_EQ(a.rms_norm_eps, b.rms_norm_eps);
  EXPECT_EQ(a.activation, b.activation);
  EXPECT_EQ(a.dtype, b.dtype);
  EXPECT_EQ(a.final_logit_softcap, b.final_logit_softcap);
  ASSERT_EQ(a.layers.size(), b.layers.size());
  for (size_t layer = 0; layer < a.layers.size(); ++layer) {
    const AttentionSpec &x = a.layers[layer], &y = b.layers[layer];
    EXPECT_EQ(x.n_kv_heads, y.n_kv_heads);
    EXPECT_EQ(x.head_dim, y.head_dim);
    EXPECT_EQ(x.scale, y.scale);
    EXPECT_EQ(x.window, y.window);
    EXPECT_EQ(x.softcap, y.softcap);
    EXPECT_EQ(x.qk_norm, y.qk_norm);
    EXPECT_EQ(x.kind, y.kind);
    EXPECT_EQ(x.kv_lora_rank, y.kv_lora_rank);
    EXPECT_EQ(x.q_lora_rank, y.q_lora_rank);
    EXPECT_EQ(x.qk_nope_head_dim, y.qk_nope_head_dim);
    EXPECT_EQ(x.qk_rope_head_dim, y.qk_rope_head_dim);
    EXPECT_EQ(x.v_head_dim, y.v_head_dim);
    EXPECT_EQ(x.rope_inv_freq, y.rope_inv_freq);
    EXPECT_EQ(x.down_bias, y.down_bias);
    EXPECT_EQ(x.latent_norm_eps, y.latent_norm_eps);
    EXPECT_TRUE(same_rope(x.rope, y.rope));
  }
}

TEST_P(FamilyConformance, ConfigRoundTrip) {
  const auto source = GoldenModel(GetParam()).open();
  const ModelConfig& config = source->config();
  const JsonObject json(source->family().to_json(config), "round trip");
  expect_same(family_of_config(json).parse(json), config);
}

TEST_P(FamilyConformance, FewerKeyHeadsShowInConfigAndWeights) {
  const auto source = GoldenModel(GetParam()).open();
  if (source->family().attention_kind() == AttentionKind::latent) return;  // which has no key heads
  ModelConfig config = source->config();
  for (AttentionSpec& spec : config.layers) spec.n_kv_heads = 1;
  const JsonObject json(source->family().to_json(config), "fewer");
  expect_same(source->family().parse(json), config);
  const auto before = source->family().weights(source->config()), after = source->family().weights(config);
  ASSERT_EQ(before.size(), after.size());
  for (size_t i = 0; i < before.size(); ++i) {
    EXPECT_EQ(before[i].name, after[i].name);
    const bool shrinks =
        before[i].attention && source->config().layers[0].n_kv_heads > 1 &&
        (before[i].name.find("k_proj") != std::string::npos || before[i].name.find("v_proj") != std::string::npos ||
         before[i].name.find("qkv_proj") != std::string::npos);
    EXPECT_EQ(before[i].shape != after[i].shape, shrinks) << before[i].name;
  }
}

TEST_P(FamilyConformance, EveryWeightOfTheFileIsNamedOnce) {
  const auto source = GoldenModel(GetParam()).open();
  std::multiset<std::string> named, stored;
  for (const WeightSpec& weight : source->family().weights(source->config())) named.insert(weight.name);
  for (const TensorInfo& info : source->tensors().tensors()) stored.insert(info.name);
  EXPECT_EQ(named, stored);
}

TEST_P(FamilyConformance, AttentionTensorsComeBackAsStored) {
  const auto source = GoldenModel(GetParam()).open();
  const ModelConfig& config = source->config();
  for (int64_t layer = 0; layer < config.n_layers; ++layer) {
    const LayerWeights weights = source->family().read_layer(config, layer, source->reader(at::kFloat));
    const NamedTensors tensors = source->family().attention_tensors(config, layer, weights.attention);
    size_t expected = 0;
    for (const WeightSpec& weight : source->family().weights(config)) {
      if (weight.layer != layer || !weight.attention) continue;
      ++expected;
      const auto found = tensors.find(weight.name);
      ASSERT_NE(found, tensors.end()) << weight.name;
      EXPECT_TRUE(at::equal(found->second, source->tensor(weight.name, at::kFloat))) << weight.name;
    }
    EXPECT_EQ(tensors.size(), expected);
  }
}

TEST_P(FamilyConformance, SavedAndLoadedModelsAreEqual) {
  const GoldenModel golden(GetParam());
  const auto source = golden.open();
  const at::Tensor expected = DecoderModel(source, at::kFloat).forward(golden.ids());
  for (const char* format : {"hf", "hdf5"}) {
    TempFolder folder;
    const auto writer = ModelWriter::create(source->config(), *source, {.output = folder / "copy", .format = format});
    for (const WeightSpec& weight : source->family().weights(source->config())) writer->copy(weight.name);
    writer->commit();
    const auto copy = ModelSource::open(folder / "copy");
    expect_same(copy->config(), source->config());
    EXPECT_TRUE(at::equal(DecoderModel(copy, at::kFloat).forward(golden.ids()), expected)) << format;
  }
}

std::string test_name(const testing::TestParamInfo<GoldenCase>& info) {
  std::string name = info.param.name;
  std::replace(name.begin(), name.end(), '/', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Cases, FamilyConformance, testing::ValuesIn(golden_cases()), test_name);

TEST(FamilyList, EveryFamilyHasAGoldenModel) {
  std::set<std::string> covered;
  for (const GoldenCase& test_case : golden_families()) covered.insert(GoldenModel(test_case).open()->family().name());
  for (const ModelFamily* family : model_families()) EXPECT_TRUE(covered.contains(family->name())) << family->name();
}

TEST(FamilyList, UnknownTypesNameTheNearest) {
  const JsonObject json(Json{{"model_type", "lama"}}, "config.json");
  try {
    family_of_config(json);
    FAIL();
  } catch (const UnsupportedError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("\"llama\""));
  }
}

Json llama_json() {
  return {{"model_type", "llama"},        {"hidden_size", 48}, {"num_hidden_layers", 2},
          {"intermediate_size", 64},      {"vocab_size", 96},  {"num_attention_heads", 6},
          {"max_position_embeddings", 64}};
}

ModelConfig parsed(const Json& json) {
  const JsonObject object(json, "config.json");
  return family_of_config(object).parse(object);
}

TEST(FamilyConfig, OldAndNewRopeKeysMeanTheSame) {
  Json old_keys = llama_json(), new_keys = llama_json();
  old_keys["rope_theta"] = 500000.0;
  old_keys["rope_scaling"] = {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 16}};
  new_keys["rope_parameters"] = {
      {"rope_theta", 500000.0}, {"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 16}};
  const RopeSpec a = parsed(old_keys).layers[0].rope, b = parsed(new_keys).layers[0].rope;
  EXPECT_TRUE(same_rope(a, b));
  EXPECT_EQ(a.theta, 500000.0);
  EXPECT_EQ(a.type, "yarn");
}

TEST(FamilyConfig, MissingKeysTakeTheClassDefault) {
  Json json = llama_json();
  EXPECT_EQ(parsed(json).layers[0].n_kv_heads, 6);
  EXPECT_FALSE(parsed(json).tie_word_embeddings);
  json["model_type"] = "mistral";
  json["num_attention_heads"] = 8;
  EXPECT_EQ(parsed(json).layers[0].window, 4096);
  json["sliding_window"] = nullptr;
  EXPECT_EQ(parsed(json).layers[0].window, 0);
  json["model_type"] = "qwen3";
  json["num_key_value_heads"] = 2;
  EXPECT_EQ(parsed(json).layers[0].head_dim, 128);
  EXPECT_EQ(parsed(json).layers[0].rope.rotary_dim, 128);
  json["model_type"] = "gemma2";
  EXPECT_TRUE(parsed(json).tie_word_embeddings);
  EXPECT_EQ(parsed(json).activation, Activation::gelu_tanh);
  EXPECT_EQ(parsed(json).layers[0].softcap, 50.0);
}

TEST(FamilyConfig, RefusesWhatItCannotHonour) {
  const auto with = [](const char* key, const Json& value) {
    Json json = llama_json();
    json[key] = value;
    return json;
  };
  EXPECT_THROW(parsed(with("num_key_value_heads", 4)), ConfigError);
  EXPECT_THROW(parsed(with("hidden_size", 47)), ConfigError);
  EXPECT_THROW(parsed(with("hidden_size", -48)), ConfigError);
  EXPECT_THROW(parsed(with("vocab_size", int64_t{1} << 40)), ConfigError);
  EXPECT_THROW(parsed(with("max_position_embeddings", 0)), ConfigError);
  EXPECT_THROW(parsed(with("hidden_act", "relu")), UnsupportedError);
  EXPECT_THROW(parsed(with("partial_rotary_factor", 0.5)), UnsupportedError);
  EXPECT_THROW(parsed(with("quantization_config", {{"quant_method", "gptq"}})), UnsupportedError);
  EXPECT_THROW(parsed(with("num_attention_heads", "six")), ConfigError);
  Json qwen = with("layer_types", Json::array({"full_attention"}));
  qwen["model_type"] = "qwen2";
  qwen["num_key_value_heads"] = 2;
  EXPECT_THROW(parsed(qwen), ConfigError);  // one entry for two layers
  qwen["layer_types"] = Json::array({"full_attention", "linear_attention"});
  EXPECT_THROW(parsed(qwen), UnsupportedError);
}

TEST(FamilyConfig, RealConfigsParse) {
  const auto folder = asset("configs");
  CINCH_NEEDS_ASSET(folder);
  for (const char* name : {"Llama-2-7b-hf", "Llama-3.2-1B-Instruct", "Qwen2.5-3B", "Qwen3-4B", "SmolLM2-135M",
                           "gemma2_2b_it", "phi3.5-mini-instruct"}) {
    const JsonObject json = JsonObject::from_file(folder / (std::string(name) + ".config.json"));
    const ModelConfig config = family_of_config(json).parse(json);
    EXPECT_GT(config.kv_elements(), 0) << name;
    for (const AttentionSpec& spec : config.layers) EXPECT_NO_THROW(Rope{spec.rope}) << name;
  }
}

TEST(FamilyConfig, LatentClassesRefuseWhatTheyCannotHonour) {
  const Json good = parse_json(read_text(repo_file("tests/golden/model/deepseek_v3/config.json")), "config.json");
  const auto with = [&](const char* key, const Json& value) {
    Json json = good;
    json[key] = value;
    return json;
  };
  EXPECT_EQ(parsed(good).layers[0].kv_elements(), 28);
  EXPECT_THROW(parsed(with("qk_rope_head_dim", 7)), ConfigError);
  EXPECT_THROW(parsed(with("kv_lora_rank", -1)), ConfigError);
  EXPECT_THROW(parsed(with("kv_lora_rank", int64_t{1} << 40)), ConfigError);
  EXPECT_THROW(parsed(with("kv_lora_rank", nullptr)), ConfigError);
  EXPECT_THROW(parsed(with("q_lora_rank", 0)), ConfigError);
  EXPECT_THROW(parsed(with("first_k_dense_replace", 1)), UnsupportedError);
  EXPECT_THROW(parsed(with("index_topk", 64)), UnsupportedError);
  EXPECT_THROW(parsed(with("rope_interleave", false)), UnsupportedError);
  EXPECT_THROW(parsed(with("rope_scaling", {{"rope_type", "dynamic"}, {"factor", 2.0}})), UnsupportedError);
  Json lists = {{"rope_type", "longrope"},
                {"factor", 1.0},
                {"attention_factor", 1.0},
                {"short_factor", {1, 1, 1, 1}},
                {"long_factor", {1, 1, 1, 2}}};
  EXPECT_THROW(parsed(with("rope_scaling", lists)), UnsupportedError);
  lists["long_factor"] = lists["short_factor"] = {1, 1};
  EXPECT_THROW(parsed(with("rope_scaling", lists)), ConfigError);
  Json no_head = with("qk_nope_head_dim", 0);
  no_head["qk_rope_head_dim"] = 0;
  EXPECT_THROW(parsed(no_head), ConfigError);
  // Dense although its keys speak of experts: no layer has them.
  EXPECT_NO_THROW(parsed(with("n_routed_experts", nullptr)));
}

}  // namespace
}  // namespace cinch
