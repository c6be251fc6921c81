#include "convert/conversion_recipe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/errors.h"

namespace cinch {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(ParseTarget, ReadsGqaAndMqa) {
  ConversionRecipe recipe;
  parse_target("gqa:4", recipe);
  EXPECT_EQ(recipe.n_kv_heads, 4);
  EXPECT_EQ(target_text(recipe), "gqa:4");
  parse_target("mqa", recipe);
  EXPECT_EQ(recipe.n_kv_heads, 1);
  EXPECT_EQ(target_text(recipe), "mqa");
}

TEST(ParseTarget, RefusesEverythingElse) {
  ConversionRecipe recipe;
  for (const char* text :
       {"", "gqa", "gqa:", "gqa:0", "gqa:-1", "gqa:2.5", "gqa:99999999999999999999", "mla:2", "MQA"}) {
    EXPECT_THROW(parse_target(text, recipe), UsageError) << text;
  }
  try {
    parse_target("gqa", recipe);
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_THAT(error.help(), HasSubstr("gqa:4"));
  }
}

TEST(ParseLayers, ReadsRangesAndLists) {
  EXPECT_THAT(parse_layers("4-7"), ElementsAre(4, 5, 6, 7));
  EXPECT_THAT(parse_layers("9, 0,3,8-9"), ElementsAre(0, 3, 8, 9));
  EXPECT_EQ(layers_text({0, 3, 8, 9, 10}), "0,3,8-10");
  EXPECT_EQ(parse_layers(layers_text({1, 2, 5})), (std::vector<int64_t>{1, 2, 5}));
}

TEST(ParseLayers, RefusesWhatIsNoList) {
  for (const char* text : {"", "a", "3-1", "1,,2", "-4", "1-", "1-2-3", "999999999"})
    EXPECT_THROW(parse_layers(text), UsageError) << text;
}

TEST(CheckRecipe, NamesTheFault) {
  ConversionRecipe good;
  good.n_kv_heads = 2;
  EXPECT_NO_THROW(check_recipe(good));
  ConversionRecipe bad = good;
  bad.calibration_tokens = 1024;
  EXPECT_THROW(check_recipe(bad), UsageError);
  bad = good;
  bad.refit_lambdas = {0.0};
  EXPECT_THROW(check_recipe(bad), UsageError);
  bad = good;
  bad.lag_tail = 1.5;
  EXPECT_THROW(check_recipe(bad), UsageError);
  bad = good;
  bad.n_kv_heads = 0;
  EXPECT_THROW(check_recipe(bad), UsageError);
}

TEST(RecipeJson, HoldsEveryFieldUnderItsKey) {
  ConversionRecipe recipe;
  parse_target("gqa:2", recipe);
  recipe.layers = {0, 1, 2};
  recipe.calibration = {{"/some/where/a.txt", 2.0}};
  const Json json = recipe_json(recipe);
  EXPECT_EQ(json["to"], "gqa:2");
  EXPECT_EQ(json["layers"], "0-2");
  EXPECT_EQ(json["calibration"][0]["file"], "a.txt");
  EXPECT_EQ(json["refit"], "automatic");
  EXPECT_EQ(json.size(), 19u);
  parse_target("mla", recipe);
  EXPECT_EQ(recipe_json(recipe)["to"], "mla");
}

}  // namespace
}  // namespace cinch
