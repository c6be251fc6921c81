#include "src/recipe_file.h"

#include <gmock/gmock.h>

#include "core/files.h"
#include "tests/src/run_cinch.h"

namespace cinch {
namespace {

using testing::HasSubstr;

TEST(Recipe, KeysAreOptionsAndFlagsWin) {
  const TempFolder folder;
  const std::string file = (folder / "r.toml").string();
  write_text(file, "# a recipe\nmodel = \"some/model\"\ntext = \"a text.txt\"\nmax_tokens = 300\nwindow=64\n");
  const Outcome outcome = run_cinch({"eval", "--config", file, "--window", "32", "--print-config"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("model = \"some/model\"\n"));
  EXPECT_THAT(outcome.out, HasSubstr("text = \"a text.txt\"\n"));
  EXPECT_THAT(outcome.out, HasSubstr("max-tokens = 300\n"));
  EXPECT_THAT(outcome.out, HasSubstr("window = 32\n"));
  EXPECT_THAT(outcome.out, HasSubstr("dtype = \"f32\"\n"));
}

TEST(Recipe, PrintedRecipesReadBack) {
  const TempFolder folder;
  const std::string file = (folder / "r.toml").string();
  const std::vector<std::string> flags = {"convert",       "in put",    "out",           "--to",    "gqa:2",
                                          "--calibration", "a b.txt:2", "--calibration", "c.jsonl", "--no-refit",
                                          "--seed",        "5",         "--print-config"};
  const Outcome first = run_cinch(flags);
  ASSERT_EQ(first.code, 0) << first.err;
  write_text(file, first.out);
  const Outcome second = run_cinch({"convert", "--config", file, "--print-config"});
  ASSERT_EQ(second.code, 0) << second.err;
  EXPECT_EQ(first.out, second.out);
  EXPECT_THAT(first.out, HasSubstr("calibration = [\"a b.txt:2\", \"c.jsonl\"]"));
  EXPECT_THAT(first.out, HasSubstr("refit-lambdas = [0.001, 0.01, 0.1]"));
  EXPECT_THAT(first.out, HasSubstr("refit = false"));
}

TEST(Recipe, AFlagOfThreeStatesIsPrintedOnlyWhenGiven) {
  const Outcome outcome = run_cinch({"convert", "in", "out", "--to", "mqa", "--print-config"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, testing::Not(HasSubstr("\nrefit = ")));
}

TEST(Recipe, UnknownKeysNameTheNearest) {
  const TempFolder folder;
  const std::string file = (folder / "r.toml").string();
  write_text(file, "windw = 64\n");
  const Outcome outcome = run_cinch({"eval", "m", "--config", file});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.err, HasSubstr("unknown key \"windw\" for `cinch eval`"));
  EXPECT_THAT(outcome.err, HasSubstr("did you mean \"window\"?"));
}

TEST(Recipe, SectionsAreRefused) {
  const TempFolder folder;
  const std::string file = (folder / "r.toml").string();
  write_text(file, "[eval]\nwindow = 64\n");
  EXPECT_EQ(run_cinch({"eval", "m", "--config", file}).code, 2);
}

TEST(Recipe, BadValuesAreRefused) {
  const TempFolder folder;
  const std::string file = (folder / "r.toml").string();
  write_text(file, "window = \"wide\"\n");
  const Outcome outcome = run_cinch({"eval", "m", "--text", "x", "--config", file});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.err, HasSubstr("--window: expected a whole number, found \"wide\""));
}

}  // namespace
}  // namespace cinch
