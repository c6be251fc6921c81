// Small random models of every family whose attention the decode kernels cover: golden configs with other sizes, some
// layers of them latent. Weights are bf16, so that models of every type compute with the same ones.
#pragma once

#include <map>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "checkpoints/checkpoint_format.h"
#include "core/files.h"
#include "tests/model/golden.h"
#include "tests/model/latent_model.h"

namespace cinch {

struct DecodeModelCase {
  std::string name;
  std::string golden;                     // whose config.json is changed
  Json changes = Json::object();          // keys of config.json
  std::map<int64_t, LatentSizes> latent;  // layers that become latent
};
inline void PrintTo(const DecodeModelCase& test_case, std::ostream* stream) { *stream << test_case.name; }

/// 2 or 3 layers of 4 heads of 32.
inline Json small_sizes(int64_t kv_heads) {
  return {
      {"hidden_size", 64},       {"num_attention_heads", 4},        {"num_key_value_heads", kv_heads}, {"head_dim", 32},
      {"intermediate_size", 48}, {"max_position_embeddings", 1024}, {"query_pre_attn_scalar", 24}};
}

inline std::vector<DecodeModelCase> decode_models() {
  const auto sizes = [](int64_t kv_heads, const Json& more) {
    Json json = small_sizes(kv_heads);
    json.update(more);
    return json;
  };
  const std::vector<double> factors = {1, 1.1, 1.2, 1.3, 1.5, 1.7, 2, 3, 4, 5, 6, 7};
  const Json longrope = {{"type", "longrope"}, {"short_factor", factors}, {"long_factor", factors}};
  const LatentSizes mapped{24, 12, 8, 16}, unmapped{40, 8, 16, 10}, wide{72, 0, 24, 24};
  return {
      {"mha", "llama_mha", small_sizes(4), {}},
      {"gqa_yarn", "rope/yarn", small_sizes(2), {}},
      {"mqa", "llama_bias", small_sizes(1), {}},
      {"gemma2", "gemma2", sizes(2, {{"sliding_window", 40}}), {}},
      {"gemma2_narrow", "gemma2", sizes(2, {{"sliding_window", 5}}), {}},
      {"qwen3", "qwen3", small_sizes(2), {}},
      {"phi3",
       "phi3_short",
       sizes(3, {{"hidden_size", 96}, {"num_attention_heads", 3}, {"head_dim", nullptr}, {"rope_scaling", longrope}}),
       {}},
      {"llama_latent", "llama_gqa", small_sizes(2), {{0, mapped}, {1, unmapped}}},
      {"mixed", "llama_bias", small_sizes(2), {{0, wide}}},
      {"qwen3_latent", "qwen3", small_sizes(2), {{0, mapped}, {1, unmapped}}},
      {"gemma2_latent", "gemma2", sizes(2, {{"sliding_window", 6}}), {{0, mapped}, {1, wide}}},
      {"deepseek_v2", "deepseek_v2", {{"kv_lora_rank", 24}, {"max_position_embeddings", 1024}}, {}},
      {"deepseek_v3", "deepseek_v3", {{"kv_lora_rank", 32}, {"v_head_dim", 16}, {"max_position_embeddings", 1024}}, {}},
      {"deepseek_v3_narrow", "deepseek_v3_narrow", {{"kv_lora_rank", 40}, {"max_position_embeddings", 1024}}, {}},
  };
}

/// Written into `folder`, which the model needs while it is read.
inline std::shared_ptr<ModelSource> make_decode_model(const DecodeModelCase& test_case,
                                                      const std::filesystem::path& folder) {
  const std::string config = "tests/golden/model/" + test_case.golden + "/config.json";
  Json json = parse_json(read_text(repo_file(config)), config);
  for (const auto& [key, value] : test_case.changes.items()) {
    if (json.contains(key)) json[key] = value;
  }
  std::filesystem::create_directories(folder / "grouped");
  write_text(folder / "grouped" / "config.json", json.dump(2));
  const JsonObject view(json, "config.json");
  const ModelFamily& family = family_of_config(view);
  std::vector<TensorInfo> infos;
  for (const WeightSpec& weight : family.weights(family.parse(view)))
    infos.push_back({weight.name, Dtype::kBF16, weight.shape, {}});
  const auto sink = checkpoint_format("safetensors")
                        .create({.path = folder / "grouped" / "model.safetensors", .metadata = {}, .shard_bytes = 0});
  sink->declare(infos);
  at::manual_seed(3);
  for (const TensorInfo& info : infos) {
    const bool norm = info.name.find("norm") != std::string::npos;
    const at::Tensor random = at::randn(info.shape);
    sink->write(info.name, to_bytes(norm ? 1 + 0.1 * random : 0.15 * random, info.dtype));
  }
  sink->commit();
  const auto source = ModelSource::open(folder / "grouped");
  if (test_case.latent.empty()) return source;
  write_latent_model(with_latent_layers(*source, test_case.latent), *source,
                     {.output = folder / "latent", .format = "native", .dtype = "bf16"});
  return ModelSource::open(folder / "latent");
}

}  // namespace cinch
