// A model of which only the config is at hand: enough for sizes and plans.
#pragma once

#include <filesystem>
#include <memory>

#include "model/model_source.h"

namespace cinch {

/// From a config.json: every tensor that such a model has, in the config's dtype (bfloat16 where it names none);
/// reading one throws CheckpointError.
std::shared_ptr<ModelSource> open_config(const std::filesystem::path& path);

}  // namespace cinch
