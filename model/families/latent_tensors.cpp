#include "model/families/latent_tensors.h"

#include <ATen/ATen.h>

namespace cinch {

std::vector<WeightSpec> latent_weight_specs(const AttentionSpec& spec, const std::string& prefix) {
  const int64_t e = spec.hidden_size, r = spec.kv_lora_rank, dr = spec.qk_rope_head_dim, dn = spec.qk_nope_head_dim;
  const int64_t q = spec.n_heads * (dn + dr), key = spec.n_kv_heads * spec.head_dim;
  const std::string self = prefix + "self_attn.";
  std::vector<WeightSpec> list = {{self + "q_proj.weight", {q, e}},
                                  {self + "kv_a_proj_with_mqa.weight", {r + dr, e}},
                                  {self + "kv_b_proj.weight", {spec.n_heads * (dn + spec.v_head_dim), r}},
                                  {self + "o_proj.weight", {e, spec.n_heads * spec.v_head_dim}}};
  if (spec.key_scale_tail) list.push_back({self + "k_norm_proj.weight", {key, e}});
  if (spec.qkv_bias) {
    list.push_back({self + "q_proj.bias", {q}});
    list.push_back({self + "kv_a_proj_with_mqa.bias", {r + dr}});
    if (spec.key_scale_tail) list.push_back({self + "k_norm_proj.bias", {key}});
  }
  if (spec.output_bias) list.push_back({self + "o_proj.bias", {e}});
  return list;
}

LatentWeights read_latent(const AttentionSpec& spec, const std::string& prefix, const TensorReader& read) {
  const std::string self = prefix + "self_attn.";
  LatentWeights w;
  w.q_proj = read(self + "q_proj.weight");
  w.kv_a_proj = read(self + "kv_a_proj_with_mqa.weight");
  w.kv_b_proj = read(self + "kv_b_proj.weight");
  w.o_proj = read(self + "o_proj.weight");
  if (spec.key_scale_tail) w.k_norm_proj = read(self + "k_norm_proj.weight");
  if (spec.qkv_bias) {
    w.q_bias = read(self + "q_proj.bias");
    w.kv_a_bias = read(self + "kv_a_proj_with_mqa.bias");
    if (spec.key_scale_tail) w.k_norm_bias = read(self + "k_norm_proj.bias");
  }
  if (spec.output_bias) w.o_bias = read(self + "o_proj.bias");
  return w;
}

NamedTensors latent_tensors(const std::string& prefix, const LatentWeights& w) {
  const std::string self = prefix + "self_attn.";
  NamedTensors tensors = {{self + "q_proj.weight", w.q_proj},
                          {self + "q_proj.bias", w.q_bias},
                          {self + "kv_a_proj_with_mqa.weight", w.kv_a_proj},
                          {self + "kv_a_proj_with_mqa.bias", w.kv_a_bias},
                          {self + "kv_b_proj.weight", w.kv_b_proj},
                          {self + "o_proj.weight", w.o_proj},
                          {self + "o_proj.bias", w.o_bias},
                          {self + "k_norm_proj.weight", w.k_norm_proj},
                          {self + "k_norm_proj.bias", w.k_norm_bias}};
  std::erase_if(tensors, [](const auto& entry) { return !entry.second.defined(); });
  return tensors;
}

}  // namespace cinch
