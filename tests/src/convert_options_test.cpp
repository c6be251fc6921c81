#include "src/convert_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <memory>

#include "convert/converter.h"
#include "core/errors.h"
#include "core/files.h"
#include "src/recipe_file.h"
#include "tests/convert/tiny_model.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

struct Parsed {
  ConvertFlags flags;
  CLI::App app{"cinch", "cinch"};
};

/// Parses as `cinch convert MODEL OUT <args>` does.
std::unique_ptr<Parsed> parse(std::vector<std::string> args) {
  auto parsed = std::make_unique<Parsed>();
  CLI::App& app = parsed->app;
  app.set_config("--config");
  app.config_formatter(std::make_shared<RecipeFormat>(&app));
  CLI::App* command = app.add_subcommand("convert", "");
  command->add_option("MODEL", parsed->flags.model)->required();
  command->add_option("OUT", parsed->flags.out)->required();
  add_convert_options(*command, parsed->flags);
  command->fallthrough();
  args.insert(args.begin(), {"convert", "model", "out"});
  std::reverse(args.begin(), args.end());
  app.parse(args);
  return parsed;
}

TEST(ConvertOptions, FlagsBecomeARecipe) {
  TempFolder folder;
  write_text(folder / "a.txt", "a");
  const auto parsed = parse({"--to", "gqa:2", "--method", "mean", "--layers", "0-1,4", "--calibration",
                             (folder / "a.txt").string() + ":3", "--no-refit", "--refit-lambdas", "0.5", "1",
                             "--search-groups", "false"});
  const ConversionRecipe recipe = recipe_of_flags(parsed->flags);
  EXPECT_EQ(recipe.n_kv_heads, 2);
  EXPECT_EQ(recipe.layers, (std::vector<int64_t>{0, 1, 4}));
  EXPECT_EQ(recipe.calibration.at(0).weight, 3.0);
  EXPECT_EQ(recipe.refit, RefitMode::off);
  EXPECT_EQ(recipe.refit_lambdas, (std::vector<double>{0.5, 1}));
  EXPECT_FALSE(recipe.search_groups);
}

TEST(ConvertOptions, TheTargetChoosesMethodAndRuntime) {
  const auto heads = parse({"--to", "mqa"}), latent = parse({"--to", "mla", "--kv-budget", "25%"});
  EXPECT_EQ(recipe_of_flags(heads->flags).method, "aligned");
  EXPECT_EQ(output_of_flags(heads->flags).format, "hf");
  const ConversionRecipe recipe = recipe_of_flags(latent->flags);
  EXPECT_EQ(recipe.method, "weighted");
  EXPECT_DOUBLE_EQ(recipe.kv_budget, 0.25);
  EXPECT_EQ(output_of_flags(latent->flags).format, "hdf5");
  EXPECT_THROW(recipe_of_flags(parse({"--to", "mla"})->flags), UsageError);
  EXPECT_THROW(recipe_of_flags(parse({"--to", "mqa", "--rank", "8", "--rope-dim", "8"})->flags), UsageError);
}

TEST(ConvertOptions, RefitIsTheMethodsChoiceUnlessGiven) {
  EXPECT_EQ(recipe_of_flags(parse({"--to", "mqa"})->flags).refit, RefitMode::automatic);
  EXPECT_EQ(recipe_of_flags(parse({"--to", "mqa", "--refit"})->flags).refit, RefitMode::on);
}

TEST(ConvertOptions, FaultsAreFoundBeforeTheModelIsOpened) {
  EXPECT_THROW(recipe_of_flags(parse({})->flags), UsageError);
  EXPECT_THROW(recipe_of_flags(parse({"--to", "gqa"})->flags), UsageError);
  EXPECT_THROW(recipe_of_flags(parse({"--to", "mqa", "--method", "meen"})->flags), UsageError);
  try {
    recipe_of_flags(parse({"--to", "mqa", "--calibration", "/nowhere.txt"})->flags);
    FAIL() << "a missing calibration file was taken";
  } catch (const std::exception& error) {
    EXPECT_EQ(describe_error(error).exit_code, ExitCode::usage);
  }
}

TEST(ConvertOptions, TheRuntimeChoosesTheFormat) {
  EXPECT_EQ(output_of_flags(parse({})->flags).format, "hf");
  EXPECT_EQ(output_of_flags(parse({"--for", "native"})->flags).format, "hdf5");
  EXPECT_EQ(output_of_flags(parse({"--for", "llama.cpp"})->flags).format, "gguf");
  EXPECT_EQ(output_of_flags(parse({"--format", "gguf", "--dtype", "q8_0"})->flags).dtype, "q8_0");
  EXPECT_THROW(output_of_flags(parse({"--for", "llama.cpp", "--format", "hf"})->flags), UsageError);
  EXPECT_THROW(output_of_flags(parse({"--dtype", "q8_0"})->flags), UsageError);
  EXPECT_THROW(output_of_flags(parse({"--for", "tensorrt"})->flags), UsageError);
}

TEST(Recipes, EveryFileIsPlannedAgainstItsShape) {
  int recipes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(repo_file("configs"))) {
    if (entry.path().extension() != ".toml") continue;
    ++recipes;
    SCOPED_TRACE(entry.path().string());
    const std::string text = read_text(entry.path());
    const std::string marker = "# shape: ";
    ASSERT_NE(text.find(marker), std::string::npos);
    const size_t begin = text.find(marker) + marker.size();
    const auto shape = repo_file("configs") / text.substr(begin, text.find('\n', begin) - begin);
    const auto parsed = parse({"--config", entry.path().string()});
    const ConfigOnlySource source(JsonObject::from_file(shape).json());
    const ConversionRecipe recipe = recipe_of_flags(parsed->flags);
    const ConversionPlan plan = plan_conversion(source, recipe, output_of_flags(parsed->flags));
    EXPECT_LT(plan.kv_ratio, 0.75);
    // Every recipe's result loads in transformers; latents with a list of frequencies of their own in nothing else.
    for (const RuntimeVerdict& verdict : plan.runtimes) {
      const bool loads = verdict.name == "hf" || recipe.target != TargetKind::mla;
      EXPECT_EQ(verdict.loads, loads) << verdict.name << " " << verdict.rule;
    }
  }
  EXPECT_GE(recipes, 7);
}

TEST(BundledCalibration, ComesFromTheEnvironmentFirst) {
  TempFolder folder;
  std::filesystem::create_directories(folder / "calibration");
  ::setenv("CINCH_DATA", folder.path().c_str(), 1);
  EXPECT_EQ(find_bundled_calibration(), folder / "calibration");
  ::unsetenv("CINCH_DATA");
  EXPECT_NE(find_bundled_calibration(), folder / "calibration");
}

}  // namespace
}  // namespace cinch
