// The token windows a conversion is fitted on: from the user's files, from the bundled mixture, or, for methods that
// fit nothing, a few only.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <string>
#include <vector>

#include "convert/conversion_recipe.h"
#include "convert/window_roles.h"
#include "core/json.h"
#include "model/model_source.h"

namespace cinch {

struct CalibrationSet {
  at::Tensor windows;               // (W, T) int64
  WindowRoles roles;                // every window is held out for methods that fit nothing; empty when `synthetic`
  std::vector<CorpusSpec> sources;  // files used; empty when `synthetic`
  bool bundled = false;             // the mixture that comes with cinch
  bool synthetic = false;           // no text at hand: arbitrary tokens, good for verification only
  Json provenance() const;          // files with digests, sizes, digest of the tokens
};

/// Every .txt and .jsonl of the folder in name order, equal weights.
std::vector<CorpusSpec> bundled_sources(const std::filesystem::path& folder);

/// `needs_text`: the method fits on activations. Throws ConfigError when the text is too short and UsageError when
/// there is none.
CalibrationSet load_calibration(const ModelSource& source, const ConversionRecipe& recipe,
                                const std::filesystem::path& bundled, bool needs_text);

}  // namespace cinch
