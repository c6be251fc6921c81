#include "convert/calibration.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/errors.h"
#include "tests/convert/tiny_model.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

ConversionRecipe small_recipe() {
  ConversionRecipe recipe;
  recipe.n_kv_heads = 1;
  recipe.calibration_tokens = 512;
  recipe.calibration_window = 32;
  return recipe;
}

TEST(LoadCalibration, TokenFilesNeedNoTokenizer) {
  TempFolder folder;
  write_tiny_ids(folder / "a.ids", 1000, 97);
  ConversionRecipe recipe = small_recipe();
  recipe.calibration = {{folder / "a.ids", 1.0}};
  const CalibrationSet set = load_calibration(ConfigOnlySource(tiny_config({})), recipe, {}, true);
  EXPECT_EQ(set.windows.size(0), 16);
  EXPECT_EQ(set.windows.size(1), 32);
  EXPECT_EQ(set.roles.held_out.size(), 2u);
  EXPECT_EQ(set.roles.validation.size(), 3u);
  const Json json = set.provenance();
  EXPECT_EQ(json["files"][0]["file"], "a.ids");
  EXPECT_EQ(json["files"][0]["sha256"].get<std::string>().size(), 64u);
}

TEST(LoadCalibration, IdsOutsideOfTheVocabularyAreRefused) {
  TempFolder folder;
  write_tiny_ids(folder / "a.ids", 1000, 500);
  ConversionRecipe recipe = small_recipe();
  recipe.calibration = {{folder / "a.ids", 1.0}};
  EXPECT_THROW(load_calibration(ConfigOnlySource(tiny_config({})), recipe, {}, true), std::exception);
}

TEST(LoadCalibration, TextWithoutATokenizerIsRefused) {
  TempFolder folder;
  write_text(folder / "a.txt", "some words");
  ConversionRecipe recipe = small_recipe();
  recipe.calibration = {{folder / "a.txt", 1.0}};
  try {
    load_calibration(ConfigOnlySource(tiny_config({})), recipe, {}, true);
    FAIL();
  } catch (const std::exception& error) {
    const ErrorReport report = describe_error(error);
    EXPECT_THAT(report.lines.front(), testing::HasSubstr("no tokenizer"));
    EXPECT_EQ(report.exit_code, ExitCode::bad_input);
  }
}

TEST(LoadCalibration, WithoutAnyTextOnlyMethodsThatFitNothingGoOn) {
  const ConfigOnlySource source(tiny_config({}));
  EXPECT_THROW(load_calibration(source, small_recipe(), {}, true), UsageError);
  const CalibrationSet set = load_calibration(source, small_recipe(), {}, false);
  EXPECT_TRUE(set.synthetic);
  EXPECT_TRUE(set.roles.held_out.empty());
  EXPECT_TRUE(at::equal(set.windows, load_calibration(source, small_recipe(), {}, false).windows));
}

TEST(BundledSources, AreTheTextsInNameOrder) {
  TempFolder folder;
  write_text(folder / "b.txt", "b");
  write_text(folder / "a.txt", "a");
  write_text(folder / "README.md", "not text to fit on");
  const std::vector<CorpusSpec> sources = bundled_sources(folder.path());
  ASSERT_EQ(sources.size(), 2u);
  EXPECT_EQ(sources[0].path.filename(), "a.txt");
  EXPECT_TRUE(bundled_sources(folder / "absent").empty());
}

}  // namespace
}  // namespace cinch
