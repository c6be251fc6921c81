#include "model/gguf_mapping.h"

#include <fmt/format.h>

#include <array>
#include <cmath>

#include "core/errors.h"
#include "model/gguf_rope.h"
#include "model/mixed_layers.h"

namespace cinch {
namespace {

struct Architecture {
  const char* gguf;
  const char* model_type;
  const char* hf_class;
};
constexpr std::array kArchitectures = {
    Architecture{"llama", "llama", "LlamaForCausalLM"}, Architecture{"qwen2", "qwen2", "Qwen2ForCausalLM"},
    Architecture{"qwen3", "qwen3", "Qwen3ForCausalLM"}, Architecture{"gemma2", "gemma2", "Gemma2ForCausalLM"},
    Architecture{"phi3", "phi3", "Phi3ForCausalLM"}};

const Architecture& architecture_of(const GgufSource& source) {
  const std::string name = source.text("general.architecture").value_or("");
  for (const Architecture& architecture : kArchitectures) {
    if (name == architecture.gguf) return architecture;
  }
  throw UnsupportedError(
      fmt::format("{}: GGUF architecture \"{}\" is not supported", source.files().front().string(), name),
      "supported: llama, qwen2, qwen3, gemma2, phi3");
}

/// 9.99999974e-06, stored as a float, was meant as 1e-05.
double short_decimal(double stored_float) { return std::stod(fmt::format("{}", static_cast<float>(stored_float))); }

int64_t require_integer(const GgufSource& source, const std::string& key) {
  const auto value = source.integer(key);
  if (!value)
    throw ConfigError(fmt::format("{}: metadata key \"{}\" is missing", source.files().front().string(), key));
  return *value;
}

/// Of queries, keys and values, which llama.cpp allows to differ.
int64_t head_dim(const GgufSource& source, const std::string& arch) {
  const int64_t heads = require_integer(source, arch + ".attention.head_count");
  const int64_t standard = heads > 0 ? require_integer(source, arch + ".embedding_length") / heads : 0;
  const int64_t keys = source.integer(arch + ".attention.key_length").value_or(standard);
  const int64_t values = source.integer(arch + ".attention.value_length").value_or(standard);
  if (keys != values) {
    throw UnsupportedError(fmt::format("{}: keys of {} and values of {} numbers per head are not supported",
                                       source.files().front().string(), keys, values));
  }
  return keys;
}

/// query_pre_attn_scalar as llama.cpp takes it from the sizes: the 27B model (46 layers) scales by hidden_size / heads.
int64_t gemma2_attention_scalar(int64_t layers, int64_t hidden_size, int64_t heads, int64_t head_size) {
  return layers == 46 && heads > 0 ? hidden_size / heads : head_size;
}

[[noreturn]] void refuse(const std::string& what) {
  throw UnsupportedError(fmt::format("llama.cpp cannot run this model as it is: {}", what), "export to hf instead");
}

/// Layer i of Gemma-2 slides when i is even, whatever the file says.
void check_gemma2(const ModelConfig& config) {
  const AttentionSpec& first = config.layers.front();
  const auto scalar =
      static_cast<double>(gemma2_attention_scalar(config.n_layers, config.hidden_size, first.n_heads, first.head_dim));
  if (std::abs(first.scale * std::sqrt(scalar) - 1) > 1e-6) {
    refuse(fmt::format("its query_pre_attn_scalar is {:.6g}, llama.cpp takes {}", 1 / (first.scale * first.scale),
                       scalar));
  }
  for (size_t layer = 0; layer < config.layers.size(); ++layer) {
    if ((config.layers[layer].window > 0) != (layer % 2 == 0)) refuse("its sliding layers are not every second one");
  }
  if (first.softcap <= 0 || config.final_logit_softcap <= 0) refuse("a soft cap is switched off");
}

void check_gguf_can_hold(const ModelConfig& config) {
  const AttentionSpec& first = config.layers.front();
  const bool gemma = config.family == "gemma2", llama = gguf_architecture(config) == "llama";
  if (has_latent_layers(config)) refuse("its attention is latent");
  if (gemma) check_gemma2(config);
  if (config.activation != (gemma ? Activation::gelu_tanh : Activation::silu)) refuse("its MLP has another activation");
  if (!llama && (first.output_bias || config.mlp_bias || (first.qkv_bias && config.family != "qwen2"))) {
    refuse("its architecture has no biases there");
  }
  for (const AttentionSpec& layer : config.layers) {
    if (!gemma && layer.window > 0 && layer.window < config.max_position_embeddings) {
      refuse(fmt::format("its sliding window of {} tokens would be ignored", layer.window));
    }
  }
}

}  // namespace

std::string gguf_architecture(const ModelConfig& config) {
  return config.family == "mistral" ? "llama" : config.family;
}

Json gguf_to_config(const GgufSource& source) {
  const Architecture& architecture = architecture_of(source);
  const std::string arch = architecture.gguf;
  const auto key = [&](const char* name) { return arch + "." + name; };
  Json config;
  config["architectures"] = Json::array({architecture.hf_class});
  config["model_type"] = architecture.model_type;
  config["hidden_size"] = require_integer(source, key("embedding_length"));
  config["num_hidden_layers"] = require_integer(source, key("block_count"));
  config["intermediate_size"] = require_integer(source, key("feed_forward_length"));
  config["num_attention_heads"] = require_integer(source, key("attention.head_count"));
  config["num_key_value_heads"] =
      source.integer(key("attention.head_count_kv")).value_or(config["num_attention_heads"].get<int64_t>());
  config["head_dim"] = head_dim(source, arch);
  config["max_position_embeddings"] = require_integer(source, key("context_length"));
  config["rms_norm_eps"] = short_decimal(source.number(key("attention.layer_norm_rms_epsilon")).value_or(1e-5));
  config["rope_theta"] = short_decimal(source.number(key("rope.freq_base")).value_or(10000.0));
  if (arch != "gemma2") config["hidden_act"] = "silu";
  const TensorInfo* embedding = source.find("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2)
    throw CheckpointError(fmt::format("{}: tensor \"token_embd.weight\" is missing", source.files().front().string()));
  config["vocab_size"] = embedding->shape[0];
  config["tie_word_embeddings"] = source.find("output.weight") == nullptr;
  config["torch_dtype"] = embedding->stored_as.empty() && embedding->dtype == Dtype::kF16    ? "float16"
                          : embedding->stored_as.empty() && embedding->dtype == Dtype::kBF16 ? "bfloat16"
                                                                                             : "float32";
  if (arch == "llama") config["attention_bias"] = source.find("blk.0.attn_q.bias") != nullptr;
  if (arch == "llama") config["mlp_bias"] = source.find("blk.0.ffn_gate.bias") != nullptr;
  if (arch == "gemma2") {
    config["query_pre_attn_scalar"] =
        gemma2_attention_scalar(config["num_hidden_layers"].get<int64_t>(), config["hidden_size"].get<int64_t>(),
                                config["num_attention_heads"].get<int64_t>(), config["head_dim"].get<int64_t>());
    config["hidden_activation"] = "gelu_pytorch_tanh";
    config["attn_logit_softcapping"] = source.number(key("attn_logit_softcapping")).value_or(50.0);
    config["final_logit_softcapping"] = source.number(key("final_logit_softcapping")).value_or(30.0);
  }
  // llama.cpp reads the window of Phi-3 and then ignores it.
  if (arch == "gemma2") config["sliding_window"] = source.integer(key("attention.sliding_window")).value_or(4096);
  for (const auto& [from, to] : {std::pair{"tokenizer.ggml.bos_token_id", "bos_token_id"},
                                 std::pair{"tokenizer.ggml.eos_token_id", "eos_token_id"}}) {
    if (const auto id = source.integer(from)) config[to] = *id;
  }
  read_gguf_rope(source, arch, config);
  return config;
}

GgufMetadata gguf_metadata_of(const ModelConfig& config, const GgufVocabulary* vocabulary, uint32_t file_type,
                              const std::string& chat_template) {
  check_gguf_can_hold(config);
  const std::string arch = gguf_architecture(config);
  const AttentionSpec& spec = config.layers.front();
  GgufMetadata metadata = {{"general.architecture", GgufValue::string(arch)},
                           {"general.file_type", GgufValue::u32(file_type)}};
  const auto add = [&](const char* key, int64_t value) {
    metadata.emplace_back(arch + "." + key, GgufValue::u32(static_cast<uint32_t>(value)));
  };
  add("block_count", config.n_layers);
  add("context_length", config.max_position_embeddings);
  add("embedding_length", config.hidden_size);
  add("feed_forward_length", config.intermediate_size);
  add("attention.head_count", spec.n_heads);
  add("attention.head_count_kv", spec.n_kv_heads);
  add("attention.key_length", spec.head_dim);
  add("attention.value_length", spec.head_dim);
  add("vocab_size", config.vocab_size);
  metadata.emplace_back(arch + ".attention.layer_norm_rms_epsilon",
                        GgufValue::f32(static_cast<float>(config.rms_norm_eps)));
  for (auto& entry : gguf_rope_metadata(config, arch)) metadata.push_back(std::move(entry));
  if (arch == "gemma2") {
    metadata.emplace_back(arch + ".attn_logit_softcapping", GgufValue::f32(static_cast<float>(spec.softcap)));
    metadata.emplace_back(arch + ".final_logit_softcapping",
                          GgufValue::f32(static_cast<float>(config.final_logit_softcap)));
  }
  if (arch == "gemma2") {
    for (const AttentionSpec& layer : config.layers) {
      if (layer.window > 0) {
        add("attention.sliding_window", layer.window);
        break;
      }
    }
  }
  if (vocabulary != nullptr) {
    add_gguf_vocabulary(*vocabulary, config.vocab_size, metadata);
    if (!chat_template.empty()) metadata.emplace_back("tokenizer.chat_template", GgufValue::string(chat_template));
  } else {
    metadata.emplace_back("tokenizer.ggml.model", GgufValue::string("none"));
  }
  return metadata;
}

}  // namespace cinch
