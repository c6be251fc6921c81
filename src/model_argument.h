// What several commands share: opening the model of an argument, compute types, and the facts of a model that `inspect`
// prints.
#pragma once

#include <c10/core/ScalarType.h>

#include <memory>
#include <string>

#include "core/json.h"
#include "model/model_source.h"
#include "model/model_summary.h"

namespace cinch {

/// Opens the model at `path`, given as `flag` ("MODEL", "--reference"). Throws UsageError when there is nothing at that
/// path, and what ModelSource::open throws. Prints the model's quality note as a warning.
std::shared_ptr<ModelSource> open_model(const std::string& path, const std::string& flag);

/// f32, bf16, f16, f64. Throws UsageError.
c10::ScalarType compute_dtype(const std::string& name);

int64_t parameter_count(const ModelSource& model);

/// The `inspect` object of the machine-readable interface.
Json summary_json(const ModelSource& model);

}  // namespace cinch
