// The weights of one decoder layer in cinch's own form, whatever the family stores (Phi-3's fused projections are
// split).
#pragma once

#include <ATen/core/Tensor.h>

#include "attention/attention_weights.h"

namespace cinch {

struct MlpWeights {
  at::Tensor gate_proj, up_proj;             // (F, E)
  at::Tensor down_proj;                      // (E, F)
  at::Tensor gate_bias, up_bias, down_bias;  // (F), (F), (E) or undefined
};

struct LayerWeights {
  AttentionWeights attention;
  MlpWeights mlp;
  at::Tensor input_norm;           // (E)
  at::Tensor post_attention_norm;  // (E): before the MLP; with sandwich norms: after attention
  at::Tensor pre_mlp_norm;         // (E), sandwich norms only
  at::Tensor post_mlp_norm;        // (E), sandwich norms only
};

}  // namespace cinch
