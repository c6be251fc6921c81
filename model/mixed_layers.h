// Attention layer by layer in config.json, for native folders whose layers no stock class describes: layers that
// differ, and latent attention. The list and what marks such a config are in docs/formats.md.
#pragma once

#include <string>

#include "model/model_config.h"

namespace cinch {

bool has_latent_layers(const ModelConfig& config);
/// True when the attention of two layers has other sizes (windows apart).
bool layers_differ(const ModelConfig& config);
/// Why no stock class holds this model ("its layers have different KV heads"); empty when one does.
std::string native_reason(const ModelConfig& config);

/// Turns a stock config.json of `config` into that of a native folder when there is a native_reason.
void write_layer_list(const ModelConfig& config, Json& json);
/// With the family's own model_type in place of the native one, so that the family is found. Throws ConfigError when a
/// native config does not name it.
JsonObject stock_config(const JsonObject& json);
/// Applies the list where there is one. Throws ConfigError naming the JSON path of a wrong length, size or key.
void read_layer_list(const JsonObject& json, ModelConfig& config);

}  // namespace cinch
