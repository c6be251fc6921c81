#include <ATen/ATen.h>

#include "model/families/standard_family.h"

namespace cinch {
namespace {

/// Phi-3 and Phi-4-mini: q, k, v in one matrix, gate and up in another (transformers, modeling_phi3.py).
class Phi3Family : public StandardFamily {
 public:
  std::string name() const override { return "phi3"; }
  std::string architecture() const override { return "Phi3ForCausalLM"; }
  std::vector<std::string> model_types() const override { return {"phi3"}; }

 protected:
  FamilyDefaults defaults() const override {
    return {.max_position_embeddings = 4096, .rms_norm_eps = 1e-5, .partial_rotary = true};
  }
  void specialise(const JsonObject& json, ModelConfig& config) const override {
    for (AttentionSpec& spec : config.layers) {
      spec.window = parse_window(json, defaults().window);
      if (spec.rope.type == "yarn" && !spec.rope.short_factor.empty())
        spec.rope.type = "longrope";  // an early spelling
      if (spec.rope.type != "longrope" || spec.rope.original_max_position_embeddings > 0) continue;
      spec.rope.original_max_position_embeddings = 4096;  // the class default
      spec.rope.factor = static_cast<double>(config.max_position_embeddings) / 4096.0;
    }
  }

  std::vector<WeightSpec> grouped_query_specs(const AttentionSpec& spec, const std::string& prefix) const override {
    const int64_t q = spec.n_heads * spec.head_dim, kv = spec.n_kv_heads * spec.head_dim;
    return {{prefix + "self_attn.qkv_proj.weight", {q + 2 * kv, spec.hidden_size}},
            {prefix + "self_attn.o_proj.weight", {spec.hidden_size, q}}};
  }

  GroupedQueryWeights read_grouped_query(const AttentionSpec& spec, const std::string& prefix,
                                         const TensorReader& read) const override {
    const int64_t q = spec.n_heads * spec.head_dim, kv = spec.n_kv_heads * spec.head_dim;
    const at::Tensor qkv = read(prefix + "self_attn.qkv_proj.weight");
    GroupedQueryWeights w;
    w.q_proj = qkv.narrow(0, 0, q);
    w.k_proj = qkv.narrow(0, q, kv);
    w.v_proj = qkv.narrow(0, q + kv, kv);
    w.o_proj = read(prefix + "self_attn.o_proj.weight");
    return w;
  }

  NamedTensors grouped_query_tensors(const std::string& prefix, const GroupedQueryWeights& w) const override {
    return {{prefix + "self_attn.qkv_proj.weight", at::cat({w.q_proj, w.k_proj, w.v_proj}, 0)},
            {prefix + "self_attn.o_proj.weight", w.o_proj}};
  }

  std::vector<WeightSpec> mlp_and_norm_specs(const ModelConfig& config, const std::string& prefix) const override {
    const int64_t e = config.hidden_size, f = config.intermediate_size;
    return {{prefix + "mlp.gate_up_proj.weight", {2 * f, e}},
            {prefix + "mlp.down_proj.weight", {e, f}},
            {prefix + "input_layernorm.weight", {e}},
            {prefix + "post_attention_layernorm.weight", {e}}};
  }

  void read_mlp_and_norms(const ModelConfig& config, const std::string& prefix, const TensorReader& read,
                          LayerWeights& w) const override {
    const int64_t f = config.intermediate_size;
    const at::Tensor gate_up = read(prefix + "mlp.gate_up_proj.weight");
    w.mlp.gate_proj = gate_up.narrow(0, 0, f);
    w.mlp.up_proj = gate_up.narrow(0, f, f);
    w.mlp.down_proj = read(prefix + "mlp.down_proj.weight");
    w.input_norm = read(prefix + "input_layernorm.weight");
    w.post_attention_norm = read(prefix + "post_attention_layernorm.weight");
  }
};

}  // namespace

const ModelFamily& phi3_family() {
  static const Phi3Family family;
  return family;
}

}  // namespace cinch
