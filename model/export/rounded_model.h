// A model with the rounding of a narrower type in its weights: the yardstick for what an export in that type may lose.
#pragma once

#include <memory>

#include "model/model_source.h"

namespace cinch {

/// `source` with every matrix rounded to `dtype`, or to Q8_0 blocks (`q8_0`). The weights are stretched before and
/// shrunk after, so that weights which lie on the type's grid already get its noise too.
std::shared_ptr<ModelSource> as_rounded(std::shared_ptr<ModelSource> source, Dtype dtype, bool q8_0);

}  // namespace cinch
