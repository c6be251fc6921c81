// What one layer's passes hold besides weights, counted from the operations that attention/ and model/ run while
// autograd records them. No torch here.
#pragma once

#include <cstdint>

#include "model/model_config.h"

namespace cinch {

struct ActivationShape {
  int64_t samples = 1;           // B
  int64_t window = 0;            // T
  int64_t compute_bytes = 4;     // of a number in the compute type
  int64_t work_bytes = 4;        // of a number in norms and softmax: 4, or 8 for fp64
  bool trains_attention = true;  // then what its projections read is kept
  bool trains_trunk = false;     // the same of MLP and norms
  bool on_cpu = true;            // where ATen's flash form takes every type and mask
  int64_t tokens() const { return samples * window; }
};

/// Bytes.
struct LayerActivations {
  int64_t kept = 0;      // by the recorded forward pass for the backward pass, the layer's input included
  int64_t backward = 0;  // more than `kept` at the worst moment of the recorded forward and the backward pass
  int64_t forward = 0;   // most that a forward pass holds that nothing records, without its input and weights
};

LayerActivations layer_activations(const ModelConfig& config, int64_t layer, const ActivationShape& shape);

/// Whether softmax(q k^T) of this layer is held as a whole, (B, H, T, T), for the backward pass: with a soft cap, and
/// where ATen has no kernel for the type, mask and shared heads on CUDA.
bool holds_probabilities(const AttentionSpec& spec, const ActivationShape& shape);

}  // namespace cinch
