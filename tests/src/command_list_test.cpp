// What every command of the list keeps to.
#include <gmock/gmock.h>

#include <set>

#include "tests/src/run_cinch.h"

namespace cinch {
namespace {

using testing::HasSubstr;

class EveryCommand : public testing::TestWithParam<std::string> {};

TEST_P(EveryCommand, HasHelp) {
  for (const char* flag : {"--help", "-h"}) {
    const Outcome outcome = run_cinch({GetParam(), flag});
    EXPECT_EQ(outcome.code, 0);
    EXPECT_THAT(outcome.out, HasSubstr("Usage: cinch " + GetParam()));
    EXPECT_THAT(outcome.out, HasSubstr("--json"));
    EXPECT_EQ(outcome.err, "");
  }
}

TEST_P(EveryCommand, RefusesUnknownFlags) {
  const Outcome outcome = run_cinch({GetParam(), "--no-such-flag-here"});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.err, HasSubstr("unknown flag --no-such-flag-here for `cinch " + GetParam() + "`"));
}

TEST_P(EveryCommand, EveryOptionIsDescribed) {
  CLI::App app;
  for (const Command& command : commands()) command.add(app);
  for (const CLI::Option* option : app.get_subcommand(GetParam())->get_options({})) {
    EXPECT_FALSE(option->get_description().empty()) << option->get_name();
  }
  EXPECT_FALSE(app.get_subcommand(GetParam())->get_description().empty());
}

std::vector<std::string> names() {
  std::vector<std::string> result;
  for (const Command& command : commands()) result.push_back(command.name);
  return result;
}
INSTANTIATE_TEST_SUITE_P(Commands, EveryCommand, testing::ValuesIn(names()),
                         [](const auto& test) { return test.param; });

TEST(CommandList, HoldsEveryCommandOnce) {
  const auto list = names();
  EXPECT_EQ(std::set<std::string>(list.begin(), list.end()).size(), list.size());
  for (const char* name : {"inspect", "plan", "convert", "eval", "generate", "bench", "export", "tokenize", "verify",
                           "doctor", "completion"}) {
    EXPECT_THAT(list, testing::Contains(name));
  }
}

}  // namespace
}  // namespace cinch
