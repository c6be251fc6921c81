#include "model/families/latent_tensors.h"

#include <ATen/ATen.h>

namespace cinch {
namespace {

struct StoredTensor {
  std::string name;  // after "model.layers.<layer>.self_attn."
  at::Tensor LatentWeights::*tensor;
  std::vector<int64_t> shape;
};

/// What a checkpoint holds of such a layer, in file order; DeepSeek's names, and k_norm_proj of cinch's own.
std::vector<StoredTensor> stored_tensors(const AttentionSpec& spec) {
  const int64_t e = spec.hidden_size, r = spec.kv_lora_rank, dr = spec.qk_rope_head_dim, dn = spec.qk_nope_head_dim;
  const int64_t heads = spec.n_heads * (dn + dr), key = spec.n_kv_heads * spec.head_dim, narrow = spec.q_lora_rank;
  const bool down_bias = spec.qkv_bias || spec.down_bias;
  std::vector<StoredTensor> list;
  const auto add = [&](bool stored, const char* name, at::Tensor LatentWeights::*tensor, std::vector<int64_t> shape) {
    if (stored) list.push_back({name, tensor, std::move(shape)});
  };
  add(narrow > 0, "q_a_proj.weight", &LatentWeights::q_a_proj, {narrow, e});
  add(narrow > 0 && spec.down_bias, "q_a_proj.bias", &LatentWeights::q_a_bias, {narrow});
  add(narrow > 0, "q_a_layernorm.weight", &LatentWeights::q_a_norm, {narrow});
  add(true, narrow > 0 ? "q_b_proj.weight" : "q_proj.weight", &LatentWeights::q_proj, {heads, narrow > 0 ? narrow : e});
  add(true, "kv_a_proj_with_mqa.weight", &LatentWeights::kv_a_proj, {r + dr, e});
  add(spec.latent_norm, "kv_a_layernorm.weight", &LatentWeights::kv_a_norm, {r});
  add(true, "kv_b_proj.weight", &LatentWeights::kv_b_proj, {spec.n_heads * (dn + spec.v_head_dim), r});
  add(true, "o_proj.weight", &LatentWeights::o_proj, {e, spec.n_heads * spec.v_head_dim});
  add(spec.key_scale_tail, "k_norm_proj.weight", &LatentWeights::k_norm_proj, {key, e});
  add(spec.qkv_bias, narrow > 0 ? "q_b_proj.bias" : "q_proj.bias", &LatentWeights::q_bias, {heads});
  add(down_bias, "kv_a_proj_with_mqa.bias", &LatentWeights::kv_a_bias, {r + dr});
  add(spec.qkv_bias && spec.key_scale_tail, "k_norm_proj.bias", &LatentWeights::k_norm_bias, {key});
  add(spec.output_bias, "o_proj.bias", &LatentWeights::o_bias, {e});
  return list;
}

}  // namespace

std::vector<WeightSpec> latent_weight_specs(const AttentionSpec& spec, const std::string& prefix) {
  std::vector<WeightSpec> list;
  for (StoredTensor& stored : stored_tensors(spec))
    list.push_back({prefix + "self_attn." + stored.name, std::move(stored.shape)});
  return list;
}

LatentWeights read_latent(const AttentionSpec& spec, const std::string& prefix, const TensorReader& read) {
  LatentWeights weights;
  for (const StoredTensor& stored : stored_tensors(spec))
    weights.*stored.tensor = read(prefix + "self_attn." + stored.name);
  return weights;
}

NamedTensors latent_tensors(const AttentionSpec& spec, const std::string& prefix, const LatentWeights& weights) {
  NamedTensors tensors;
  for (const StoredTensor& stored : stored_tensors(spec)) {
    if ((weights.*stored.tensor).defined()) tensors[prefix + "self_attn." + stored.name] = weights.*stored.tensor;
  }
  return tensors;
}

}  // namespace cinch
