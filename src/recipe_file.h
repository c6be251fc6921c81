// Recipes: a TOML file whose keys are the long names of a command's options (or the names of its arguments in lower
// case). Flags given on the command line win. `--print-config` prints the resolved recipe in the same form.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace cinch {

/// Reads `--config FILE` for whichever command `app` parsed: every key goes to that command's option of the same name
/// ("calibration-tokens" and "calibration_tokens" are the same key). Throws UsageError on unknown keys, naming the
/// nearest, and on broken lines.
class RecipeFormat : public CLI::ConfigBase {
 public:
  explicit RecipeFormat(const CLI::App* app) : app_(app) {}
  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override;

 private:
  const CLI::App* app_;
};

/// The resolved options of a parsed command as a recipe; options that are neither given nor have a default are left
/// out.
std::string recipe_of(const CLI::App& command);

/// "calibration-tokens" of an option, or "model" of an argument: its key in a recipe.
std::string recipe_key(const CLI::Option& option);

}  // namespace cinch
