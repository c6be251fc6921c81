#include <fmt/format.h>

#include <array>

#include "model/gguf_mapping.h"

namespace cinch {
namespace {

struct NamePair {
  const char* hf;
  const char* gguf;
};

constexpr std::array kTop = {NamePair{"model.embed_tokens.weight", "token_embd.weight"},
                             NamePair{"model.norm.weight", "output_norm.weight"},
                             NamePair{"lm_head.weight", "output.weight"}};
constexpr std::array kLayer = {
    NamePair{"self_attn.q_proj.weight", "attn_q.weight"},
    NamePair{"self_attn.k_proj.weight", "attn_k.weight"},
    NamePair{"self_attn.v_proj.weight", "attn_v.weight"},
    NamePair{"self_attn.o_proj.weight", "attn_output.weight"},
    NamePair{"self_attn.q_proj.bias", "attn_q.bias"},
    NamePair{"self_attn.k_proj.bias", "attn_k.bias"},
    NamePair{"self_attn.v_proj.bias", "attn_v.bias"},
    NamePair{"self_attn.o_proj.bias", "attn_output.bias"},
    NamePair{"self_attn.q_norm.weight", "attn_q_norm.weight"},
    NamePair{"self_attn.k_norm.weight", "attn_k_norm.weight"},
    NamePair{"self_attn.qkv_proj.weight", "attn_qkv.weight"},
    NamePair{"mlp.gate_proj.weight", "ffn_gate.weight"},
    NamePair{"mlp.up_proj.weight", "ffn_up.weight"},
    NamePair{"mlp.down_proj.weight", "ffn_down.weight"},
    NamePair{"mlp.gate_up_proj.weight", "ffn_up.weight"},
    NamePair{"mlp.gate_proj.bias", "ffn_gate.bias"},
    NamePair{"mlp.up_proj.bias", "ffn_up.bias"},
    NamePair{"mlp.down_proj.bias", "ffn_down.bias"},
    NamePair{"input_layernorm.weight", "attn_norm.weight"},
    NamePair{"post_attention_layernorm.weight", "ffn_norm.weight"},
};
// Gemma-2's norms stand elsewhere under the same Hugging Face name.
constexpr std::array kGemmaLayer = {NamePair{"post_attention_layernorm.weight", "post_attention_norm.weight"},
                                    NamePair{"pre_feedforward_layernorm.weight", "ffn_norm.weight"},
                                    NamePair{"post_feedforward_layernorm.weight", "post_ffw_norm.weight"}};

bool applies(const NamePair& pair, const std::string& family) {
  const std::string_view hf = pair.hf;
  if (family == "gemma2" && hf == "post_attention_layernorm.weight") return false;
  const bool fused = hf == "mlp.gate_up_proj.weight" || hf == "self_attn.qkv_proj.weight";
  const bool split = hf == "mlp.up_proj.weight" || hf == "mlp.gate_proj.weight";
  return family == "phi3" ? !split : !fused;
}

/// Every pair of the family's layer.
std::vector<NamePair> layer_pairs(const std::string& family) {
  std::vector<NamePair> pairs;
  for (const NamePair& pair : kLayer) {
    if (applies(pair, family)) pairs.push_back(pair);
  }
  if (family == "gemma2") pairs.insert(pairs.end(), kGemmaLayer.begin(), kGemmaLayer.end());
  return pairs;
}

/// Splits "<prefix><n>.<rest>".
std::optional<std::pair<std::string, std::string>> layer_and_rest(const std::string& name, const std::string& prefix) {
  if (!name.starts_with(prefix)) return std::nullopt;
  const size_t dot = name.find('.', prefix.size());
  if (dot == std::string::npos) return std::nullopt;
  return std::pair(name.substr(prefix.size(), dot - prefix.size()), name.substr(dot + 1));
}

}  // namespace

std::optional<std::string> gguf_to_hf_name(const std::string& name, const std::string& family) {
  for (const NamePair& pair : kTop) {
    if (name == pair.gguf) return pair.hf;
  }
  const auto parts = layer_and_rest(name, "blk.");
  if (!parts) return std::nullopt;
  for (const NamePair& pair : layer_pairs(family)) {
    if (parts->second == pair.gguf) return fmt::format("model.layers.{}.{}", parts->first, pair.hf);
  }
  return std::nullopt;
}

std::optional<std::string> hf_to_gguf_name(const std::string& name, const std::string& family) {
  for (const NamePair& pair : kTop) {
    if (name == pair.hf) return pair.gguf;
  }
  const auto parts = layer_and_rest(name, "model.layers.");
  if (!parts) return std::nullopt;
  for (const NamePair& pair : layer_pairs(family)) {
    if (parts->second == pair.hf) return fmt::format("blk.{}.{}", parts->first, pair.gguf);
  }
  return std::nullopt;
}

bool has_permuted_rows(const std::string& hf_name, const std::string& family) {
  if (family != "llama" && family != "mistral") return false;
  for (const char* part : {".q_proj.weight", ".k_proj.weight", ".q_proj.bias", ".k_proj.bias"}) {
    if (hf_name.ends_with(part)) return true;
  }
  return false;
}

bool stores_one_plus_weight(const std::string& hf_name, const std::string& family) {
  return family == "gemma2" && hf_name.ends_with("norm.weight");
}

}  // namespace cinch
