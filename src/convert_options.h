// The options that `plan` and `convert` share; each is a recipe key of the same name.
#pragma once

#include <CLI/CLI.hpp>

#include <filesystem>
#include <string>
#include <vector>

#include "convert/conversion_recipe.h"
#include "model/model_writer.h"

namespace cinch {

struct ConvertFlags {
  std::string model, out;
  std::string to, method = "auto", kv_budget, kv_bits = "16", per_layer = "uniform", slots = "auto";
  std::string statistics, layers;
  std::string runtime = "auto", format, device = "cpu", kernel = "auto";
  std::string export_to;
  std::vector<std::string> calibration;
  ConversionRecipe recipe;  // fields without a spelling of their own are bound to it directly
  bool refit = false;       // read only when given
  std::string dtype;
  bool force = false, resume = false, dry_run = false;
  const CLI::Option* refit_option = nullptr;
};

void add_convert_options(CLI::App& command, ConvertFlags& flags);

/// The recipe of the parsed flags. Throws UsageError.
ConversionRecipe recipe_of_flags(const ConvertFlags& flags);

/// Where and how to write: `--format`, or what `--for` reads best (hf, vllm, sglang: folder; llama.cpp: gguf; native:
/// hdf5). "auto" is hf, and native for latents, which no stock class of the source's family holds. Throws UsageError
/// when the two contradict each other.
ModelWriterOptions output_of_flags(const ConvertFlags& flags);
/// Of the export that follows the conversion.
ModelWriterOptions export_of_flags(const ConvertFlags& flags);

/// The folder of the bundled calibration mixture: $CINCH_DATA/calibration, <program>/../share/cinch/calibration, or
/// examples/calibration of a source tree that the program was built in. Empty when there is none.
std::filesystem::path find_bundled_calibration();

}  // namespace cinch
