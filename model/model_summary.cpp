#include "model/model_summary.h"

#include <algorithm>
#include <string>

namespace cinch {

int64_t kv_bytes_at(const ModelConfig& config, int64_t tokens) {
  int64_t bytes = 0;
  for (const AttentionSpec& layer : config.layers) {
    const int64_t held = layer.window > 0 ? std::min(layer.window, tokens) : tokens;
    bytes += 2 * layer.kv_elements() * held;
  }
  return bytes;
}

Json model_summary(const ModelConfig& config, int64_t parameters) {
  Json layers = Json::array();
  for (const AttentionSpec& layer : config.layers) {
    layers.push_back({{"kind", "grouped_query"},
                      {"n_heads", layer.n_heads},
                      {"n_kv_heads", layer.n_kv_heads},
                      {"head_dim", layer.head_dim},
                      {"kv_lora_rank", nullptr},
                      {"qk_rope_head_dim", nullptr},
                      {"window", layer.window},
                      {"kv_elements", layer.kv_elements()}});
  }
  Json at;
  for (const int64_t tokens : {4096, 32768, 131072}) at[std::to_string(tokens)] = kv_bytes_at(config, tokens);
  return {{"architecture", config.architecture},
          {"family", config.family},
          {"n_layers", config.n_layers},
          {"hidden_size", config.hidden_size},
          {"vocab_size", config.vocab_size},
          {"max_position_embeddings", config.max_position_embeddings},
          {"layers", layers},
          {"parameters", parameters},
          {"kv_bytes_per_token", config.kv_bytes_per_token()},
          {"kv_bytes_at", at},
          {"dtype", config.dtype}};
}

}  // namespace cinch
