// Small random models and token files, made by the tests themselves.
#pragma once

#include <ATen/ATen.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "checkpoints/checkpoint_format.h"
#include "core/files.h"
#include "model/mixed_layers.h"
#include "model/model_source.h"

namespace cinch {

struct TinyShape {
  std::string family = "llama";
  int64_t layers = 2, heads = 4, kv_heads = 4, head_dim = 8, hidden = 32, intermediate = 48, vocab = 97, context = 64;
  Dtype dtype = Dtype::kF32;
};

inline Json tiny_config(const TinyShape& shape) {
  const std::string class_name = shape.family == "qwen2" ? "Qwen2ForCausalLM" : "LlamaForCausalLM";
  return {{"architectures", {class_name}},
          {"model_type", shape.family},
          {"hidden_size", shape.hidden},
          {"intermediate_size", shape.intermediate},
          {"num_hidden_layers", shape.layers},
          {"num_attention_heads", shape.heads},
          {"num_key_value_heads", shape.kv_heads},
          {"head_dim", shape.head_dim},
          {"vocab_size", shape.vocab},
          {"max_position_embeddings", shape.context},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 10000.0},
          {"hidden_act", "silu"},
          {"tie_word_embeddings", true},
          {"torch_dtype", shape.dtype == Dtype::kBF16 ? "bfloat16" : "float32"}};
}

/// Writes a Hugging Face folder with random weights, the same for the same seed.
inline void write_tiny_model(const std::filesystem::path& folder, const TinyShape& shape, uint64_t seed = 1) {
  std::filesystem::create_directories(folder);
  const Json json = tiny_config(shape);
  write_text(folder / "config.json", json.dump(2));
  const JsonObject view(json, "config.json");
  const ModelFamily& family = family_of_config(view);
  const auto sink =
      checkpoint_format("safetensors").create({.path = folder / "model.safetensors", .metadata = {}, .shard_bytes = 0});
  std::vector<TensorInfo> infos;
  for (const WeightSpec& weight : family.weights(family.parse(view)))
    infos.push_back({weight.name, shape.dtype, weight.shape, {}});
  sink->declare(infos);
  at::manual_seed(seed);
  for (const TensorInfo& info : infos) {
    const bool norm = info.name.find("norm") != std::string::npos;
    const at::Tensor random = at::randn(info.shape);
    sink->write(info.name, to_bytes(norm ? 1 + 0.1 * random : 0.15 * random, info.dtype));
  }
  sink->commit();
}

/// A file of `count` token ids below `vocab`.
inline void write_tiny_ids(const std::filesystem::path& file, int64_t count, int64_t vocab, uint64_t seed = 7) {
  at::manual_seed(seed);
  const at::Tensor ids = at::randint(vocab, {count}, at::kLong);
  std::string text;
  for (int64_t i = 0; i < count; ++i) text += std::to_string(ids[i].item<int64_t>()) + "\n";
  write_text(file, text);
}

/// A config without tensors: enough to plan.
class ConfigOnlySource : public ModelSource {
 public:
  explicit ConfigOnlySource(const Json& json)
      : family_(&family_of_config(JsonObject(json, "config.json"))),
        config_(family_->parse(JsonObject(json, "config.json"))) {
    read_layer_list(JsonObject(json, "config.json"), config_);
  }
  const std::filesystem::path& path() const override { return path_; }
  const ModelConfig& config() const override { return config_; }
  const ModelFamily& family() const override { return *family_; }
  const TensorSource& tensors() const override { throw std::logic_error("a plan reads no tensors"); }
  std::unique_ptr<Tokenizer> tokenizer() const override { return nullptr; }
  std::optional<GgufVocabulary> vocabulary() const override { return std::nullopt; }
  std::map<std::string, std::string> side_files() const override { return {}; }
  std::string quality_note() const override { return {}; }

 private:
  std::filesystem::path path_ = "nowhere";
  const ModelFamily* family_;
  ModelConfig config_;
};

}  // namespace cinch
