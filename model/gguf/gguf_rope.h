// Rotary embedding between config.json and GGUF: scaling keys, and the tensors of per-plane divisors that llama.cpp
// reads for llama3 (rope_freqs.weight) and longrope (rope_factors_long.weight, rope_factors_short.weight).
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "checkpoints/formats/gguf.h"
#include "model/model_config.h"

namespace cinch {

/// Sets rope_scaling (and, with heads of one size, partial_rotary_factor, original_max_position_embeddings) of
/// `config`, which holds head_dim, rope_theta and max_position_embeddings. Divisors that are those of llama3 become
/// llama3, others longrope, which is the same function.
void read_gguf_rope(const GgufSource& source, const std::string& arch, Json& config);

/// Why llama.cpp would compute other frequencies for a grouped-query model of this architecture; empty when it does
/// not.
std::string gguf_rope_obstacle(const ModelConfig& config);

/// The keys "<arch>.rope.*" of a model without such an obstacle.
GgufMetadata gguf_rope_metadata(const ModelConfig& config, const std::string& arch);

/// The tensors that go with them: name and values (rotary_dim/2).
std::vector<std::pair<std::string, std::vector<float>>> gguf_rope_tensors(const ModelConfig& config);

}  // namespace cinch
