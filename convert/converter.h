// Runs a plan: layer by layer, sequentially on the converted prefix, resumable, and writes the result.
#pragma once

#include <c10/core/Device.h>

#include <filesystem>
#include <memory>
#include <string>

#include "convert/conversion_plan.h"
#include "convert/conversion_recipe.h"
#include "model/model_source.h"
#include "model/model_writer.h"

namespace cinch {

/// Works out the plan from the config and the tensor headers; reads no weight. Throws every user error: UsageError
/// (recipe), UnsupportedError (a target that does not divide the heads or would not shrink the cache; a format that
/// cannot hold the result). `format`/`dtype` as in ModelWriterOptions.
ConversionPlan plan_conversion(const ModelSource& source, const ConversionRecipe& recipe,
                               const ModelWriterOptions& output);

struct ConvertOptions {
  ModelWriterOptions output;
  bool resume = false;
  std::filesystem::path statistics;  // where the original's moments are or shall be (moment_file.h); empty: not kept
  at::Device device = at::kCPU;
  std::filesystem::path bundled_calibration;  // folder of the bundled mixture; empty: there is none
};

struct ConvertReport {
  Json json;  // the `convert` object of docs/interface.md
};

/// Converts and writes. Until everything is written and verified, work lives in the partial folder beside the output
/// (partial_folder.h), from which `resume` goes on to the same bytes as an uninterrupted run. Throws InterruptedError
/// when asked to stop (finished layers are kept), VerificationError when what was written does not compute what was
/// meant, ResourceError on a full disk.
ConvertReport convert_model(std::shared_ptr<ModelSource> source, const ConversionRecipe& recipe,
                            const ConvertOptions& options);

}  // namespace cinch
