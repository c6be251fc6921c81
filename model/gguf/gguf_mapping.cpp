#include "model/gguf/gguf_mapping.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <functional>

#include "core/errors.h"
#include "model/gguf/gguf_rope.h"

namespace cinch {
namespace {

struct Architecture {
  const char* gguf;
  const char* model_type;
  const char* hf_class;
};
constexpr std::array kArchitectures = {Architecture{"llama", "llama", "LlamaForCausalLM"},
                                       Architecture{"qwen2", "qwen2", "Qwen2ForCausalLM"},
                                       Architecture{"qwen3", "qwen3", "Qwen3ForCausalLM"},
                                       Architecture{"gemma2", "gemma2", "Gemma2ForCausalLM"},
                                       Architecture{"phi3", "phi3", "Phi3ForCausalLM"},
                                       Architecture{"deepseek2", "deepseek_v3", "DeepseekV3ForCausalLM"}};

const Architecture& architecture_of(const GgufSource& source) {
  const std::string name = source.text("general.architecture").value_or("");
  for (const Architecture& architecture : kArchitectures) {
    if (name == architecture.gguf) return architecture;
  }
  throw UnsupportedError(
      fmt::format("{}: GGUF architecture \"{}\" is not supported", source.files().front().string(), name),
      "supported: llama, qwen2, qwen3, gemma2, phi3, deepseek2");
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

/// Sizes and rotary keys of latent attention.
void read_latent(const GgufSource& source, Json& config) {
  const auto key = [](const char* name) { return fmt::format("deepseek2.{}", name); };
  const std::string file = source.files().front().string();
  const int64_t layers = config.at("num_hidden_layers").get<int64_t>();
  const int64_t dense = source.integer(key("leading_dense_block_count")).value_or(0);
  if (dense < layers) {
    throw UnsupportedError(fmt::format("{}: {} of {} layers are mixtures of experts", file, layers - dense, layers),
                           "cinch reads dense models with latent attention only");
  }
  const int64_t rotary = require_integer(source, key("rope.dimension_count"));
  // Files from before the latent cache give the sizes of whole heads under the common keys.
  const bool whole = source.integer(key("attention.key_length_mla")).has_value();
  const int64_t keys = require_integer(source, key(whole ? "attention.key_length_mla" : "attention.key_length"));
  if (rotary < 0 || keys < rotary)
    throw ConfigError(fmt::format("{}: {} rotated numbers of a key of {}", file, rotary, keys));
  config["qk_rope_head_dim"] = rotary;
  config["qk_nope_head_dim"] = keys - rotary;
  config["v_head_dim"] = require_integer(source, key(whole ? "attention.value_length_mla" : "attention.value_length"));
  config["kv_lora_rank"] = require_integer(source, key("attention.kv_lora_rank"));
  const int64_t narrow = source.integer(key("attention.q_lora_rank")).value_or(0);
  config["q_lora_rank"] = narrow > 0 ? Json(narrow) : Json(nullptr);
  config["first_k_dense_replace"] = layers;
  config["kv_a_layernorm_eps"] = config.at("rms_norm_eps");  // there is one epsilon
  const std::string type = source.text(key("rope.scaling.type")).value_or("none");
  if (type == "none") return;
  const double factor = source.number(key("rope.scaling.factor")).value_or(1.0);
  if (type != "linear" || factor < 1) {
    throw UnsupportedError(
        fmt::format("{}: RoPE scaling \"{}\" by {:g} is not supported for latents", file, type, factor));
  }
  // llama.cpp stretches the scores of every scaled deepseek2 as for YaRN.
  config["rope_scaling"] = {{"rope_type", "linear"}, {"factor", factor}, {"mscale_all_dim", 1.0}};
}

/// Keys of the latent; the cache is one head of R + Dr numbers, its first R the values.
void add_latent(const AttentionSpec& spec, const ModelConfig& config,
                const std::function<void(const char*, int64_t)>& add) {
  add("attention.head_count_kv", 1);
  add("attention.key_length", spec.kv_lora_rank + spec.qk_rope_head_dim);
  add("attention.value_length", spec.kv_lora_rank);
  add("attention.key_length_mla", spec.qk_nope_head_dim + spec.qk_rope_head_dim);
  add("attention.value_length_mla", spec.v_head_dim);
  add("attention.kv_lora_rank", spec.kv_lora_rank);
  add("attention.q_lora_rank", spec.q_lora_rank);
  add("leading_dense_block_count", config.n_layers);
  add("expert_feed_forward_length", config.intermediate_size);
  add("expert_shared_count", 0);
}

/// query_pre_attn_scalar as llama.cpp takes it from the sizes: the 27B model (46 layers) scales by hidden_size / heads.
int64_t gemma2_scalar(int64_t layers, int64_t hidden_size, int64_t heads, int64_t head_size) {
  return layers == 46 && heads > 0 ? hidden_size / heads : head_size;
}

}  // namespace

int64_t gemma2_attention_scalar(const ModelConfig& config) {
  const AttentionSpec& first = config.layers.front();
  return gemma2_scalar(config.n_layers, config.hidden_size, first.n_heads, first.head_dim);
}

std::string gguf_architecture(const ModelConfig& config) {
  for (const Architecture& architecture : kArchitectures) {
    if (config.family == architecture.model_type) return architecture.gguf;
  }
  if (config.family == "mistral") return "llama";
  throw UnsupportedError(fmt::format("GGUF has no architecture for family {}", config.family), "export to hf");
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
  const bool latent = arch == "deepseek2";
  config["num_key_value_heads"] =
      latent ? config["num_attention_heads"].get<int64_t>()
             : source.integer(key("attention.head_count_kv")).value_or(config["num_attention_heads"].get<int64_t>());
  if (!latent) config["head_dim"] = head_dim(source, arch);
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
        gemma2_scalar(config["num_hidden_layers"].get<int64_t>(), config["hidden_size"].get<int64_t>(),
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
  if (latent) {
    read_latent(source, config);
  } else {
    read_gguf_rope(source, arch, config);
  }
  return config;
}

GgufMetadata gguf_metadata_of(const ModelConfig& config, const GgufVocabulary* vocabulary, uint32_t file_type,
                              const std::string& chat_template) {
  const std::string arch = gguf_architecture(config);
  const AttentionSpec& spec = config.layers.front();
  GgufMetadata metadata = {{"general.architecture", GgufValue::string(arch)},
                           {"general.file_type", GgufValue::u32(file_type)}};
  const std::function<void(const char*, int64_t)> add = [&](const char* key, int64_t value) {
    metadata.emplace_back(arch + "." + key, GgufValue::u32(static_cast<uint32_t>(value)));
  };
  add("block_count", config.n_layers);
  add("context_length", config.max_position_embeddings);
  add("embedding_length", config.hidden_size);
  add("feed_forward_length", config.intermediate_size);
  add("attention.head_count", spec.n_heads);
  if (spec.kind == AttentionKind::latent) {
    add_latent(spec, config, add);
  } else {
    add("attention.head_count_kv", spec.n_kv_heads);
    add("attention.key_length", spec.head_dim);
    add("attention.value_length", spec.head_dim);
  }
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
