#include "core/progress.h"

#include <gmock/gmock.h>
#include <signal.h>

#include "core/errors.h"

namespace cinch {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::internal::CaptureStderr;
using ::testing::internal::GetCapturedStderr;

class LogTest : public ::testing::Test {
 protected:
  void TearDown() override { set_verbosity(Verbosity::normal); }
};

TEST_F(LogTest, VerbosityDecidesWhatIsShown) {
  const auto printed = [](Verbosity level) {
    set_verbosity(level);
    CaptureStderr();
    log_info("info");
    log_detail("detail");
    log_warning("careful");
    return GetCapturedStderr();
  };
  EXPECT_EQ(printed(Verbosity::quiet), "warning: careful\n");
  EXPECT_EQ(printed(Verbosity::normal), "info\nwarning: careful\n");
  EXPECT_EQ(printed(Verbosity::verbose), "info\ndetail\nwarning: careful\n");
}

TEST_F(LogTest, AFileGetsPlainLinesOfProgress) {
  CaptureStderr();
  {
    Progress progress({.phase = "convert", .unit = "layers", .total = 30, .index = 2, .count = 4});
    for (int i = 0; i < 30; ++i) progress.advance();
    progress.finish();
    progress.finish();
  }
  const std::string text = GetCapturedStderr();
  EXPECT_THAT(text, ContainsRegex(R"(^\[2/4\] convert   30/30 layers  .*/s  in 0:00)"));
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1);
  EXPECT_THAT(text, Not(HasSubstr("\r")));
  EXPECT_THAT(text, Not(HasSubstr("\x1b")));
}

TEST_F(LogTest, QuietHidesProgress) {
  set_verbosity(Verbosity::quiet);
  CaptureStderr();
  Progress progress({.phase = "x", .unit = "tokens"});
  progress.advance(5);
  progress.finish();
  EXPECT_EQ(GetCapturedStderr(), "");
}

TEST(InterruptDeathTest, FirstSignalAsksSecondEnds) {
  EXPECT_FALSE(interrupt_requested());
  EXPECT_NO_THROW(check_interrupt());
  const auto interrupted = [](std::initializer_list<int> signals) {
    install_interrupt_handlers();
    for (const int signal : signals) ::raise(signal);
    try {
      check_interrupt("run again with --resume");
    } catch (const InterruptedError& error) {
      const bool right = error.help() == "run again with --resume" && error.exit_code() == ExitCode::interrupted;
      ::_exit(right ? 42 : 43);
    }
    ::_exit(44);
  };
  const auto goes_on = ::testing::ExitedWithCode(42), ends = ::testing::ExitedWithCode(130);
  EXPECT_EXIT(interrupted({SIGTERM}), goes_on, "");
  EXPECT_EXIT(interrupted({SIGTERM, SIGINT}), ends, "");
  EXPECT_EXIT(interrupted({SIGINT, SIGINT}), ends, "");
  EXPECT_EXIT(interrupted({SIGTERM, SIGTERM}), goes_on, "") << "from the scheduler and from the launcher";
  EXPECT_EXIT(interrupted({SIGUSR1}), goes_on, "");
  EXPECT_EXIT(interrupted({SIGUSR1, SIGUSR1, SIGTERM, SIGUSR1}), goes_on, "");
  EXPECT_EXIT(interrupted({SIGUSR1, SIGINT, SIGINT}), ends, "");
}

}  // namespace
}  // namespace cinch
