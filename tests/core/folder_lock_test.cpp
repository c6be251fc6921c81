#include "core/folder_lock.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>

#include "core/errors.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

TEST(FolderLock, OneAtATime) {
  const TempFolder folder;
  std::optional<FolderLock> first;
  first.emplace(folder.path(), "resting");
  try {
    FolderLock(folder.path(), "resting");
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(std::string(error.what()), testing::HasSubstr("another process is resting"));
  }
  first.reset();
  EXPECT_NO_THROW(FolderLock(folder.path(), "resting"));
  EXPECT_THROW(FolderLock(folder / "absent", "resting"), std::exception);
}

}  // namespace
}  // namespace cinch
