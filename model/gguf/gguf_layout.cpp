#include "model/gguf/gguf_layout.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <array>

#include "core/errors.h"

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
// Of latent attention; kv_b_proj is stored as two tensors (older files: as one), in whose place its name stands here.
constexpr std::array kLatentLayer = {NamePair{"self_attn.q_a_proj.weight", "attn_q_a.weight"},
                                     NamePair{"self_attn.q_a_layernorm.weight", "attn_q_a_norm.weight"},
                                     NamePair{"self_attn.q_b_proj.weight", "attn_q_b.weight"},
                                     NamePair{"self_attn.kv_a_proj_with_mqa.weight", "attn_kv_a_mqa.weight"},
                                     NamePair{"self_attn.kv_a_layernorm.weight", "attn_kv_a_norm.weight"},
                                     NamePair{"self_attn.kv_b_proj.weight", "attn_kv_b.weight"}};
constexpr const char* kLatentUp = "self_attn.kv_b_proj.weight";
constexpr std::array kLatentUpParts = {"attn_k_b.weight", "attn_v_b.weight"};
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
  if (family == "deepseek_v3") pairs.insert(pairs.end(), kLatentLayer.begin(), kLatentLayer.end());
  return pairs;
}

/// Splits "<prefix><n>.<rest>".
std::optional<std::pair<std::string, std::string>> layer_and_rest(const std::string& name, const std::string& prefix) {
  if (!name.starts_with(prefix)) return std::nullopt;
  const size_t dot = name.find('.', prefix.size());
  if (dot == std::string::npos) return std::nullopt;
  return std::pair(name.substr(prefix.size(), dot - prefix.size()), name.substr(dot + 1));
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

bool has_interleaved_rows(const std::string& hf_name, const std::string& family) {
  if (family != "llama" && family != "mistral") return false;
  for (const char* part : {".q_proj.weight", ".k_proj.weight", ".q_proj.bias", ".k_proj.bias"}) {
    if (hf_name.ends_with(part)) return true;
  }
  return false;
}

}  // namespace

std::optional<std::string> gguf_to_hf_name(const std::string& name, const std::string& family) {
  for (const NamePair& pair : kTop) {
    if (name == pair.gguf) return pair.hf;
  }
  const auto parts = layer_and_rest(name, "blk.");
  if (!parts) return std::nullopt;
  const auto hf_name = [&](const char* rest) { return fmt::format("model.layers.{}.{}", parts->first, rest); };
  for (const NamePair& pair : layer_pairs(family)) {
    if (parts->second == pair.gguf) return hf_name(pair.hf);
  }
  for (const char* part : kLatentUpParts) {
    if (family == "deepseek_v3" && parts->second == part) return hf_name(kLatentUp);
  }
  return std::nullopt;
}

GgufPlacement::GgufPlacement(const ModelConfig& config, const std::string& hf_name,
                             const std::vector<int64_t>& hf_shape)
    : config_(config), shape_(hf_shape) {
  const auto name = hf_to_gguf_name(hf_name, config.family);
  if (!name) throw UnsupportedError(fmt::format("tensor \"{}\" has no name in GGUF", hf_name));
  parts_ = {{*name, hf_shape}};
  if (has_interleaved_rows(hf_name, config.family)) form_ = Form::interleaved_rows;
  if (config.family == "gemma2" && hf_name.ends_with("norm.weight")) form_ = Form::one_more;
  if (config.family == "deepseek_v3" && hf_name.ends_with(kLatentUp)) {
    form_ = Form::latent_up;
    const AttentionSpec& spec = config.layers.front();
    const std::string block = name->substr(0, name->find("attn_"));
    parts_ = {{block + kLatentUpParts[0], {spec.n_heads, spec.kv_lora_rank, spec.qk_nope_head_dim}},
              {block + kLatentUpParts[1], {spec.n_heads, spec.v_head_dim, spec.kv_lora_rank}}};
  }
}

std::vector<at::Tensor> GgufPlacement::to_parts(const at::Tensor& tensor) const {
  const AttentionSpec& spec = config_.layers.front();
  switch (form_) {
    case Form::same:
      return {tensor};
    case Form::interleaved_rows: {
      const at::Tensor heads = tensor.unflatten(0, {-1, 2, spec.head_dim / 2});
      return {heads.transpose(1, 2).reshape(tensor.sizes())};
    }
    case Form::one_more:
      return {(tensor.scalar_type() == at::kDouble ? tensor : tensor.to(at::kFloat)) + 1};
    case Form::latent_up: {
      const at::Tensor heads = tensor.unflatten(0, {spec.n_heads, spec.qk_nope_head_dim + spec.v_head_dim});
      return {heads.slice(1, 0, spec.qk_nope_head_dim).transpose(1, 2), heads.slice(1, spec.qk_nope_head_dim)};
    }
  }
  return {};
}

at::Tensor GgufPlacement::from_parts(const std::vector<at::Tensor>& parts) const {
  const at::Tensor& first = parts.at(0);
  switch (form_) {
    case Form::same:
      return first;
    case Form::interleaved_rows: {
      const at::Tensor heads = first.unflatten(0, {-1, config_.layers.front().head_dim / 2, 2});
      return heads.transpose(1, 2).reshape(first.sizes());
    }
    case Form::one_more:
      return first - 1;
    case Form::latent_up:
      return at::cat({first.transpose(1, 2), parts.at(1).to(first.scalar_type())}, 1).flatten(0, 1);
  }
  return first;
}

}  // namespace cinch
