#include <gmock/gmock.h>

#include <cstdlib>

#include "core/files.h"
#include "tests/src/run_cinch.h"

namespace cinch {
namespace {

using testing::HasSubstr;

class Completion : public testing::TestWithParam<std::string> {};

TEST_P(Completion, KnowsEveryCommandAndFlag) {
  const Outcome outcome = run_cinch({"completion", GetParam()});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  CLI::App app;
  for (const Command& command : commands()) command.add(app);
  for (const CLI::App* command : app.get_subcommands({})) {
    EXPECT_THAT(outcome.out, HasSubstr(command->get_name()));
    for (const CLI::Option* option : command->get_options({})) {
      for (const std::string& name : option->get_lnames())
        EXPECT_THAT(outcome.out, HasSubstr((GetParam() == "fish" ? "-l " : "--") + name));
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Shells, Completion, testing::Values("bash", "zsh", "fish"),
                         [](const auto& test) { return test.param; });

TEST(CompletionCommand, BashCompletes) {
  const TempFolder folder;
  const std::string script = (folder / "cinch.bash").string();
  write_text(script, run_cinch({"completion", "bash"}).out);
  const auto complete = [&](const std::string& words, int index) {
    const std::string result = (folder / "result").string();
    const std::string command = "bash -c 'source " + script + "; COMP_WORDS=(" + words +
                                "); COMP_CWORD=" + std::to_string(index) + "; _cinch; echo \"${COMPREPLY[@]}\" > " +
                                result + "'";
    EXPECT_EQ(std::system(command.c_str()), 0);
    return read_text(result);
  };
  EXPECT_EQ(complete("cinch ins", 1), "inspect\n");
  EXPECT_EQ(complete("cinch inspect --ten", 2), "--tensors\n");
  EXPECT_EQ(complete("cinch export --format gg", 3), "gguf\n");
  EXPECT_EQ(complete("cinch completion f", 2), "fish\n");
}

}  // namespace
}  // namespace cinch
