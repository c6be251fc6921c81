#include "convert/provenance.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "convert/converter.h"
#include "core/files.h"
#include "tests/convert/tiny_model.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

using testing::HasSubstr;

TEST(LicenceOf, ReadsTheModelCardsHeader) {
  TempFolder folder;
  write_tiny_model(folder / "model", {});
  EXPECT_EQ(licence_of(*ModelSource::open(folder / "model")), "");
  write_text(folder / "model" / "README.md",
             "---\nlanguage: en\nlicense: \"apache-2.0\"\n---\nlicense: not this one\n");
  EXPECT_EQ(licence_of(*ModelSource::open(folder / "model")), "apache-2.0");
  write_text(folder / "model" / "README.md", "# no header\nlicense: mit\n");
  EXPECT_EQ(licence_of(*ModelSource::open(folder / "model")), "");
}

TEST(ModelCard, SaysWhereTheModelComesFrom) {
  TempFolder folder;
  write_tiny_model(folder / "model", {});
  write_text(folder / "model" / "README.md", "---\nlicense: mit\n---\n");
  write_tiny_ids(folder / "text.ids", 1000, 97);
  ConversionRecipe recipe;
  parse_target("mqa", recipe);
  recipe.method = "mean";
  recipe.calibration = {{folder / "text.ids", 1.0}};
  recipe.calibration_tokens = 256;
  recipe.calibration_window = 32;
  convert_model(ModelSource::open(folder / "model"), recipe, {.output = {.output = folder / "out"}});
  const std::string card = read_text(folder / "out" / "README.md");
  for (const char* part :
       {"license: mit", "Converted from `model`", "`mean`", "text.ids", "| 4 | 1 |", "nats per token", "read back"}) {
    EXPECT_THAT(card, HasSubstr(part));
  }
  // No times, no paths: the same inputs give the same bytes.
  EXPECT_THAT(card, testing::Not(HasSubstr(folder.path().string())));
  EXPECT_THAT(read_text(folder / "out" / "cinch.json"), testing::Not(HasSubstr(folder.path().string())));
}

TEST(RunIdentity, ChangesWithTheSourcesBytes) {
  TempFolder folder;
  write_tiny_model(folder / "model", {}, 1);
  ConversionRecipe recipe;
  parse_target("mqa", recipe);
  recipe.method = "mean";
  const ModelWriterOptions output{.output = folder / "out"};
  const auto identity = [&] {
    const auto source = ModelSource::open(folder / "model");
    const ConversionPlan plan = plan_conversion(*source, recipe, output);
    return run_identity(*source, plan, load_calibration(*source, plan.recipe, {}, false), output, "cpu");
  };
  const Json first = identity();
  EXPECT_EQ(first, identity());
  write_tiny_model(folder / "model", {}, 2);
  EXPECT_NE(first, identity());
}

}  // namespace
}  // namespace cinch
