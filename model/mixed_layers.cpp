#include "model/mixed_layers.h"

#include <fmt/format.h>

#include "core/errors.h"

namespace cinch {

bool layers_differ(const ModelConfig& config) {
  for (const AttentionSpec& spec : config.layers) {
    if (spec.n_kv_heads != config.layers.front().n_kv_heads) return true;
  }
  return false;
}

void write_layer_sizes(const ModelConfig& config, Json& json) {
  json.erase("cinch");
  if (!layers_differ(config)) return;
  Json list = Json::array();
  for (const AttentionSpec& spec : config.layers) list.push_back({{"num_key_value_heads", spec.n_kv_heads}});
  json["cinch"] = {{"layers", list}};
}

void read_layer_sizes(const JsonObject& json, ModelConfig& config) {
  const auto extra = json.object_if("cinch");
  if (!extra || !extra->has("layers")) return;
  const std::vector<JsonObject> list = extra->objects("layers");
  if (list.size() != config.layers.size())
    throw ConfigError(
        fmt::format("{}: {} entries for {} layers", extra->where("layers"), list.size(), config.layers.size()));
  for (size_t layer = 0; layer < list.size(); ++layer) {
    const int64_t heads = list[layer].integer("num_key_value_heads");
    AttentionSpec& spec = config.layers[layer];
    if (heads <= 0 || spec.n_heads % heads != 0)
      throw ConfigError(fmt::format("{}: {} does not divide {} query heads", list[layer].where("num_key_value_heads"),
                                    heads, spec.n_heads));
    spec.n_kv_heads = heads;
  }
}

}  // namespace cinch
