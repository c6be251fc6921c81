// A conversion that was stopped in the middle, made from a finished one.
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "checkpoints/checkpoint_format.h"
#include "convert/partial_folder.h"
#include "core/json.h"
#include "model/model_source.h"

namespace cinch {

/// What a kill behind layer 0 would have left of the run to `unfinished`, had it gone as the one that wrote `finished`.
inline void leave_as_killed_behind_layer_0(const std::filesystem::path& finished,
                                           const std::filesystem::path& unfinished) {
  const Json record = JsonObject::from_file(finished / "cinch.json").json();
  Json identity;
  for (const char* key : {"version", "recipe", "source", "calibration", "output", "threads", "device"})
    identity[key] = record[key];
  PartialFolder partial(unfinished, identity, PartialFolder::Start::fresh);
  const auto source = open_tensors(finished);
  std::map<std::string, PartialFolder::StoredTensor> layer;
  for (const TensorInfo& info : source->tensors()) {
    if (info.name.find("layers.0.self_attn") != std::string::npos)
      layer[info.name] = {info.dtype, to_torch(source->read(info.name), torch_dtype(info.dtype))};
  }
  partial.store_layer(0, layer, record["layers"][0]);
}

}  // namespace cinch
