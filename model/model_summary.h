// What `inspect` and `plan` say about a model, as one JSON object with the keys of docs/interface.md.
#pragma once

#include <cstdint>
#include <string>

#include "core/json.h"
#include "model/model_config.h"

namespace cinch {

/// Bytes of a 16-bit cache after `tokens` tokens of one sequence; layers with a sliding window hold at most their
/// window.
int64_t kv_bytes_at(const ModelConfig& config, int64_t tokens);

/// "3" or "1 to 3" KV heads, "latent 80+32" (R+Dr), or the smallest and the largest cache of a mixture.
std::string kv_heads_text(const ModelConfig& config);

/// The `inspect` object: sizes, one entry per layer, cache bytes at 16 bits.
Json model_summary(const ModelConfig& config, int64_t parameters);

}  // namespace cinch
