#include "core/errors.h"

#include <gmock/gmock.h>

#include <new>

namespace cinch {
namespace {

using ::testing::ElementsAre;

TEST(DescribeError, TheFaultComesFirstThenItsContext) {
  try {
    with_context("while converting layer 3", [] {
      with_context("while reading a.safetensors", [] { throw CheckpointError("tensor x: bad", "download it again"); });
    });
    FAIL();
  } catch (const std::exception& error) {
    const ErrorReport report = describe_error(error);
    EXPECT_THAT(report.lines, ElementsAre("tensor x: bad", "while reading a.safetensors", "while converting layer 3"));
    EXPECT_EQ(report.help, "download it again");
    EXPECT_EQ(report.exit_code, ExitCode::bad_input);
  }
}

TEST(DescribeError, OutOfMemoryIsAResourceFault) {
  const ErrorReport report = describe_error(std::bad_alloc());
  EXPECT_EQ(report.exit_code, ExitCode::resources);
  EXPECT_THAT(report.lines, ElementsAre("not enough memory"));
}

TEST(DescribeError, UnknownErrorsFail) {
  EXPECT_EQ(describe_error(std::runtime_error("odd")).exit_code, ExitCode::failed);
}

TEST(WithContext, PassesValuesThrough) {
  EXPECT_EQ(with_context("x", [] { return 7; }), 7);
}

}  // namespace
}  // namespace cinch
