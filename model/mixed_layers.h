// Per-layer attention sizes in config.json, for native folders whose layers differ (`--layers`): "cinch": {"layers":
// [{"num_key_value_heads": 1}, ...]}.
#pragma once

#include "model/model_config.h"

namespace cinch {

bool layers_differ(const ModelConfig& config);
/// Adds the list when the layers differ, removes it otherwise.
void write_layer_sizes(const ModelConfig& config, Json& json);
/// Applies the list where there is one. Throws ConfigError on a wrong length or size.
void read_layer_sizes(const JsonObject& json, ModelConfig& config);

}  // namespace cinch
