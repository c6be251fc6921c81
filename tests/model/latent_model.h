// Models some of whose layers have latent attention with random weights, made from golden ones: no layer's sizes are
// those of another.
#pragma once

#include <ATen/ATen.h>

#include <map>
#include <string>
#include <utility>

#include "model/decoder_model.h"
#include "model/model_writer.h"

namespace cinch {

struct LatentSizes {
  int64_t rank, nope, rotary, value;
};

/// The attention `source` as latent attention. With QK-norm `nope` is the head size.
inline AttentionSpec latent_spec(const AttentionSpec& source, const LatentSizes& sizes) {
  AttentionSpec spec = source;
  spec.kind = AttentionKind::latent;
  spec.kv_lora_rank = sizes.rank;
  spec.qk_nope_head_dim = source.qk_norm ? source.head_dim : sizes.nope;
  spec.qk_rope_head_dim = sizes.rotary;
  spec.v_head_dim = sizes.value;
  spec.key_scale_tail = source.qk_norm;
  for (int64_t slot = 0; slot < sizes.rotary / 2; ++slot) {
    spec.rope_inv_freq.push_back(1.0 / (1.0 + 0.7 * static_cast<double>(slot)));
  }
  return spec;
}

inline LatentWeights random_latent_weights(const AttentionSpec& spec) {
  const auto random = [](std::vector<int64_t> shape) { return at::randn(shape, at::kDouble) * 0.2; };
  const int64_t e = spec.hidden_size, r = spec.kv_lora_rank, dr = spec.qk_rope_head_dim;
  const int64_t q = spec.n_heads * (spec.qk_nope_head_dim + dr), key = spec.n_kv_heads * spec.head_dim;
  LatentWeights w;
  w.q_proj = random({q, e});
  w.kv_a_proj = random({r + dr, e});
  w.kv_b_proj = random({spec.n_heads * (spec.qk_nope_head_dim + spec.v_head_dim), r});
  w.o_proj = random({e, spec.n_heads * spec.v_head_dim});
  if (spec.qkv_bias) {
    w.q_bias = random({q});
    w.kv_a_bias = random({r + dr});
  }
  if (spec.output_bias) w.o_bias = random({e});
  if (spec.key_scale_tail) {
    w.k_norm_proj = random({key, e});
    if (spec.qkv_bias) w.k_norm_bias = random({key});
  }
  return w;
}

/// `config` is the source's with some layers latent, `latent` their weights by layer.
struct LatentModel {
  ModelConfig config;
  std::map<int64_t, LatentWeights> latent;
};

/// Layer by layer: sizes where it becomes latent.
inline LatentModel with_latent_layers(const ModelSource& source, const std::map<int64_t, LatentSizes>& layers) {
  at::manual_seed(11);
  LatentModel model{source.config(), {}};
  for (const auto& [layer, sizes] : layers) {
    AttentionSpec& spec = model.config.layers.at(static_cast<size_t>(layer));
    spec = latent_spec(spec, sizes);
    model.latent[layer] = random_latent_weights(spec);
  }
  return model;
}

inline void write_latent_model(const LatentModel& model, const ModelSource& source, const ModelWriterOptions& options) {
  const auto writer = ModelWriter::create(model.config, source, options);
  for (const auto& [layer, weights] : model.latent) {
    for (const auto& [name, tensor] : source.family().attention_tensors(model.config, layer, weights))
      writer->write(name, tensor);
  }
  for (const WeightSpec& weight : source.family().weights(model.config)) {
    if (!(weight.attention && model.latent.contains(weight.layer))) writer->copy(weight.name);
  }
  writer->commit();
}

}  // namespace cinch
