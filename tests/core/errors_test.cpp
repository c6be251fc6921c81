#include "core/errors.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <new>

namespace cinch {
namespace {

using ::testing::ElementsAre;

TEST(DescribeError, TheFaultComesFirstThenItsContext) {
  try {
    with_context("converting layer 3", [] {
      with_context("reading a.safetensors", [] { throw CheckpointError("tensor x: bad", "download it again"); });
    });
    FAIL();
  } catch (const std::exception& error) {
    const ErrorReport report = describe_error(error);
    EXPECT_THAT(report.lines, ElementsAre("tensor x: bad", "reading a.safetensors", "converting layer 3"));
    EXPECT_EQ(report.help, "download it again");
    EXPECT_EQ(report.exit_code, ExitCode::bad_input);
  }
}

TEST(DescribeError, OutOfMemoryIsAResourceFault) {
  const ErrorReport report = describe_error(std::bad_alloc());
  EXPECT_EQ(report.exit_code, ExitCode::resources);
  EXPECT_THAT(report.lines, ElementsAre("not enough memory"));
}

TEST(DescribeError, ErrorsOfFileSystemsNameTheFileAndTheReason) {
  namespace fs = std::filesystem;
  const fs::filesystem_error denied("status", "/a/b", std::make_error_code(std::errc::permission_denied));
  EXPECT_THAT(describe_error(denied).lines, ElementsAre("cannot use /a/b: Permission denied"));
  EXPECT_EQ(describe_error(denied).exit_code, ExitCode::failed);
  EXPECT_NE(describe_error(denied).help, "");
  const fs::filesystem_error full("copy", "/a/b", std::make_error_code(std::errc::no_space_on_device));
  EXPECT_EQ(describe_error(full).exit_code, ExitCode::resources);
}

TEST(DescribeError, UnknownErrorsFail) {
  EXPECT_EQ(describe_error(std::runtime_error("odd")).exit_code, ExitCode::failed);
}

TEST(WithContext, PassesValuesThrough) {
  EXPECT_EQ(with_context("x", [] { return 7; }), 7);
}

}  // namespace
}  // namespace cinch
