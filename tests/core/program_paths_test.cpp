#include "core/program_paths.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "core/files.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

namespace fs = std::filesystem;

constexpr const char* kAnswer = "CINCH_TEST_ANSWER";

TEST(ProgramPaths, TheProgramsFolderIsThatOfThisTest) {
  EXPECT_TRUE(fs::exists(program_folder() / "core_test"));
  EXPECT_TRUE(program_folder().is_absolute());
}

TEST(ProgramPaths, BundledFilesAreFoundFromABuildInsideTheCheckout) {
  EXPECT_TRUE(fs::equivalent(bundled_folder("calibration"), repo_file("examples/calibration")));
  EXPECT_TRUE(fs::equivalent(bundled_folder("configs"), repo_file("configs")));
  EXPECT_TRUE(bundled_folder("a-folder-that-nobody-has").empty());
  EXPECT_TRUE(bundled_folder("README.md").empty()) << "a file is no folder";
}

/// Copies of this program, started below, tell what they find and do nothing else.
const bool kAsked = [] {
  const char* answer = std::getenv(kAnswer);
  if (answer == nullptr) return false;
  write_text(answer, bundled_folder("calibration").string());
  ::_exit(0);
}();

/// What a copy of this program at `program` finds.
std::string found_by_copy(const fs::path& program) {
  EXPECT_FALSE(kAsked);
  fs::create_directories(program.parent_path());
  fs::copy_file("/proc/self/exe", program);
  const fs::path answer = program.string() + ".answer";
  const pid_t child = ::fork();
  if (child == 0) {
    ::setenv(kAnswer, answer.c_str(), 1);
    ::execl(program.c_str(), program.c_str(), nullptr);
    ::_exit(127);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0) << program;
  return read_text(answer);
}

TEST(ProgramPaths, AnInstalledProgramFindsItsOwnShare) {
  const TempFolder folder;
  const fs::path share = folder / "prefix/share/cinch/calibration";
  fs::create_directories(share);
  // A checkout around the installation is not what an installed program means.
  fs::create_directories(folder / "examples/calibration");
  EXPECT_TRUE(fs::equivalent(found_by_copy(folder / "prefix/libexec/copy"), share));
}

TEST(ProgramPaths, TheNearestFolderAboveWins) {
  const TempFolder folder;
  fs::create_directories(folder / "examples/calibration");
  EXPECT_EQ(found_by_copy(folder / "build/release/copy"), fs::canonical(folder / "examples/calibration").string());
  fs::create_directories(folder / "build/calibration");
  EXPECT_EQ(found_by_copy(folder / "build/release/other"), fs::canonical(folder / "build/calibration").string());
}

TEST(ProgramPaths, AloneThereIsNothing) {
  const TempFolder folder;
  EXPECT_EQ(found_by_copy(folder / "bin/copy"), "");
}

}  // namespace
}  // namespace cinch
