#include "core/files.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>

#include "core/errors.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(AtomicFile, NothingRemainsWithoutCommit) {
  const TempFolder folder;
  {
    AtomicFile file(folder / "a.bin");
    file.write("hello");
    EXPECT_TRUE(std::filesystem::exists(file.temporary_path()));
    EXPECT_EQ(file.temporary_path().parent_path(), folder.path());
  }
  EXPECT_THAT(folder.names(), IsEmpty());
}

TEST(AtomicFile, CommitReplacesTheOldFileAtOnce) {
  const TempFolder folder;
  write_text(folder / "a.bin", "old");
  AtomicFile file(folder / "a.bin");
  file.write("new and ");
  file.write("longer");
  EXPECT_EQ(file.position(), 14u);
  file.write_at(0, std::as_bytes(std::span("NEW", 3)));
  EXPECT_EQ(read_text(folder / "a.bin"), "old");
  file.commit();
  EXPECT_EQ(read_text(folder / "a.bin"), "NEW and longer");
  EXPECT_THAT(folder.names(), ElementsAre("a.bin"));
}

TEST(AtomicFile, LeftoversOfKilledWritersAreRemovedAndLiveOnesKept) {
  const TempFolder folder;
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    AtomicFile file(folder / "a.bin");
    file.write("half");
    ::raise(SIGKILL);
  }
  ::waitpid(child, nullptr, 0);
  EXPECT_EQ(folder.names().size(), 1u);
  AtomicFile live(folder / "a.bin");
  EXPECT_THAT(folder.names(), ElementsAre(live.temporary_path().filename().string()));
  AtomicFile second(folder / "a.bin");
  EXPECT_EQ(folder.names().size(), 2u);
}

TEST(AtomicFile, AMissingFolderIsNamed) {
  const TempFolder folder;
  try {
    AtomicFile file(folder / "absent/a.bin");
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("absent/a.bin: No such file"));
    EXPECT_EQ(error.exit_code(), ExitCode::failed);
  }
}

TEST(AtomicFile, FoldersAndDevicesAreNotReplaced) {
  const TempFolder folder;
  std::filesystem::create_directory(folder / "a");
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  for (const std::filesystem::path& target : {folder / "a", folder / "pipe", std::filesystem::path("/dev/null")}) {
    try {
      AtomicFile file(target);
      FAIL() << target;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(target.string() + ": not a regular file"));
      EXPECT_FALSE(error.help().empty());
    }
  }
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
  EXPECT_EQ(folder.names(), (std::vector<std::string>{"a", "pipe"}));
}

TEST(AtomicFile, AFullDiskIsAResourceError) {
  // The kernel's own full device stands in for a full disk: every write to it fails with ENOSPC.
  const TempFolder folder;
  AtomicFile file(folder / "a.bin");
  const int full = ::open("/dev/full", O_WRONLY);
  ASSERT_GE(full, 0);
  int target = -1;  // the descriptor of the temporary file
  for (int i = 3; i < 1024 && target < 0; ++i) {
    std::error_code error;
    if (std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(i), error) == file.temporary_path()) target = i;
  }
  ASSERT_GE(target, 0);
  ASSERT_GE(::dup2(full, target), 0);
  ::close(full);
  EXPECT_THROW(file.write("x"), ResourceError);
}

TEST(ThrowSystemError, DistinguishesResources) {
  for (const int number : {ENOSPC, EDQUOT, ENOMEM, EMFILE, ENFILE}) {
    EXPECT_THROW(throw_system_error("cannot write", "x", number), ResourceError);
  }
  try {
    throw_system_error("cannot write", "/a/b", EROFS);
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "cannot write /a/b: Read-only file system");
    EXPECT_EQ(error.exit_code(), ExitCode::failed);
    EXPECT_FALSE(error.help().empty());
  }
  for (const int number : {EIO, ENOENT, ENOTDIR, EISDIR, ENAMETOOLONG, ELOOP, ENOMEM}) {
    try {
      throw_system_error("cannot write", "x", number);
    } catch (const Error& error) {
      EXPECT_FALSE(error.help().empty()) << number;
    }
  }
}

TEST(MappedFile, GivesTheBytesAndForgetsReleasedPages) {
  const TempFolder folder;
  const std::string text(100000, 'q');
  write_text(folder / "a", text);
  const MappedFile file(folder / "a");
  ASSERT_EQ(file.bytes().size(), text.size());
  EXPECT_EQ(static_cast<char>(file.bytes()[99999]), 'q');
  file.release(file.bytes().subspan(5000, 60000));
  file.release(file.bytes());
  file.release({});
  EXPECT_EQ(std::memcmp(file.bytes().data(), text.data(), text.size()), 0);
}

TEST(MappedFile, EmptyMissingAndFolder) {
  const TempFolder folder;
  write_text(folder / "empty", "");
  EXPECT_TRUE(MappedFile(folder / "empty").bytes().empty());
  EXPECT_THROW(MappedFile(folder / "absent"), Error);
  EXPECT_THROW(MappedFile(folder.path()), ConfigError);
  EXPECT_THROW(MappedFile("/dev/null"), ConfigError);
  EXPECT_THROW(read_text(folder.path()), ConfigError);
}

TEST(ReadText, HasALimit) {
  const TempFolder folder;
  write_text(folder / "a", "12345");
  EXPECT_EQ(read_text(folder / "a", 5), "12345");
  EXPECT_THROW(read_text(folder / "a", 4), ConfigError);
  EXPECT_THROW(read_text(folder / "b"), Error);
}

TEST(FreeDiskBytes, WorksForPathsThatDoNotExistYet) {
  const TempFolder folder;
  EXPECT_GT(free_disk_bytes(folder / "not/yet/there"), 0u);
}

}  // namespace
}  // namespace cinch
