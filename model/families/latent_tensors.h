// Names and shapes of latent attention's tensors in a checkpoint: the same in every family.
#pragma once

#include "model/model_family.h"

namespace cinch {

/// `prefix`: "model.layers.<layer>."
std::vector<WeightSpec> latent_weight_specs(const AttentionSpec& spec, const std::string& prefix);
LatentWeights read_latent(const AttentionSpec& spec, const std::string& prefix, const TensorReader& read);
/// Undefined tensors are left out.
NamedTensors latent_tensors(const AttentionSpec& spec, const std::string& prefix, const LatentWeights& weights);

}  // namespace cinch
