#include "train/launch/launch_children.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <set>
#include <sstream>
#include <thread>

#include "core/errors.h"
#include "train/launch/launch.h"

namespace cinch {
namespace {

namespace fs = std::filesystem;
using Seconds = std::chrono::duration<double>;

constexpr unsigned kTimeout = 60;  // s

class LaunchChildren : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("cinch-children-" + std::to_string(::getpid()));
    fs::create_directories(folder_);
    ::setenv("FOLDER", folder_.c_str(), 1);
  }
  void TearDown() override {
    ::unsetenv("FOLDER");
    fs::remove_all(folder_);
  }

  /// A process of its own, as requests to stop are remembered for good; it and what it starts end with the timeout.
  static pid_t in_process(const std::function<int()>& body) {
    const pid_t process = ::fork();
    if (process != 0) return process;
    ::alarm(kTimeout);
    int code = 99;
    try {
      code = body();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
    }
    ::_exit(code);
  }
  /// 128 + signal for one that a signal ended.
  static int code_of(pid_t process) {
    int status = 0;
    ::waitpid(process, &status, 0);
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  }
  /// `script` runs as each of the children, with its rank in $R.
  static pid_t start_shells(int count, const std::string& script, std::chrono::milliseconds grace = kLong) {
    return in_process([=] {
      return run_children(count, {"-c", "R=$CINCH_NPROC_RANK; " + script}, {.program = "/bin/sh", .grace = grace});
    });
  }
  static int run_shells(int count, const std::string& script, std::chrono::milliseconds grace = kLong) {
    return code_of(start_shells(count, script, grace));
  }

  std::string read(const std::string& name) const {
    std::ostringstream text;
    text << std::ifstream(folder_ / name).rdbuf();
    return text.str();
  }
  /// Until all ranks have written a file of this name and their rank.
  void wait_for(const std::string& name, int count) const {
    for (int rank = 0; rank < count; ++rank) {
      for (int i = 0; i < 100 * static_cast<int>(kTimeout) && read(name + std::to_string(rank)).empty(); ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }

  static constexpr std::chrono::milliseconds kLong{30000};
  fs::path folder_;
};

bool runs(pid_t process) {
  std::string state;
  std::ifstream file("/proc/" + std::to_string(process) + "/status");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("State:", 0) == 0) state = line;
  }
  return !state.empty() && state.find('Z') == std::string::npos && state.find('X') == std::string::npos;
}

TEST_F(LaunchChildren, AllMustEndWell) {
  EXPECT_EQ(run_shells(3, "echo $R >$FOLDER/$R"), 0);
  EXPECT_EQ(read("0") + read("1") + read("2"), "0\n1\n2\n");
  EXPECT_EQ(run_shells(1, "exit 0"), 0);
}

TEST_F(LaunchChildren, TheFirstFailureEndsTheOthers) {
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(run_shells(3, "[ $R = 1 ] && exit 3; exec sleep 100"), 3);
  EXPECT_EQ(run_shells(3, "[ $R = 2 ] && kill -SEGV $$; exec sleep 100"), 128 + SIGSEGV);
  EXPECT_EQ(run_shells(2,
                       "[ $R = 0 ] && { while [ ! -e $FOLDER/ready ]; do sleep 0.05; done; exit 1; }; "
                       "trap 'echo asked >$FOLDER/1; exit 0' TERM; >$FOLDER/ready; while :; do sleep 0.05; done"),
            1);
  EXPECT_LT(Seconds(std::chrono::steady_clock::now() - start).count(), 20);
  EXPECT_EQ(read("1"), "asked\n");
}

TEST_F(LaunchChildren, TheDeafAreKilledAfterTheGrace) {
  const std::string script = "trap '' TERM; echo x >$FOLDER/$R; [ $R = 0 ] && { sleep 0.5; exit 4; }; exec sleep 100";
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(run_shells(2, script, std::chrono::milliseconds(300)), 4);
  EXPECT_LT(Seconds(std::chrono::steady_clock::now() - start).count(), 20);
}

TEST_F(LaunchChildren, ARequestToStopReachesAll) {
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) {
    fs::remove(folder_ / "ready0");
    fs::remove(folder_ / "ready1");
    const pid_t parent = start_shells(
        2,
        "trap 'sleep 0.2; echo stopped >$FOLDER/stopped$R; exit 130' USR1; echo x >$FOLDER/ready$R; while :; do sleep "
        "0.05; done");
    wait_for("ready", 2);
    ::kill(parent, signal);
    EXPECT_EQ(code_of(parent), 130);
    EXPECT_EQ(read("stopped0") + read("stopped1"), "stopped\nstopped\n");
  }
}

TEST_F(LaunchChildren, OneThatStopsInOrderIsNoFailure) {
  // Rank 0 still writes when rank 1 has ended; nothing must hurry it.
  EXPECT_EQ(run_shells(2, "trap 'exit 9' TERM USR1; [ $R = 1 ] && exit 130; sleep 1; echo saved >$FOLDER/0; exit 130",
                       std::chrono::milliseconds(10)),
            130);
  EXPECT_EQ(read("0"), "saved\n");
}

TEST_F(LaunchChildren, ASecondRequestEndsAllAtOnce) {
  const pid_t parent = start_shells(2, "trap '' TERM INT USR1; echo $$ >$FOLDER/ready$R; exec sleep 100");
  wait_for("ready", 2);
  ::kill(parent, SIGINT);
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  ::kill(parent, SIGINT);
  EXPECT_EQ(code_of(parent), 130);
  for (const char* name : {"ready0", "ready1"}) {
    const pid_t child = std::stoi(read(name));
    for (int i = 0; i < 500 && runs(child); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    EXPECT_FALSE(runs(child));
  }
}

TEST_F(LaunchChildren, AKilledParentLeavesNoOrphans) {
  const pid_t parent = start_shells(2, "trap '' TERM INT USR1; echo $$ >$FOLDER/ready$R; exec sleep 100");
  wait_for("ready", 2);
  ::kill(parent, SIGKILL);
  EXPECT_EQ(code_of(parent), 128 + SIGKILL);
  for (const char* name : {"ready0", "ready1"}) {
    const pid_t child = std::stoi(read(name));
    for (int i = 0; i < 500 && runs(child); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    EXPECT_FALSE(runs(child));
  }
}

TEST_F(LaunchChildren, TheyShareTheCoresAndAStore) {
  ::unsetenv("OMP_NUM_THREADS");
  const std::string script =
      "echo $OMP_NUM_THREADS >$FOLDER/threads$R; echo $R >>$CINCH_NPROC_STORE; sleep 0.3; "
      "sort $CINCH_NPROC_STORE >$FOLDER/store$R";
  EXPECT_EQ(run_shells(2, script), 0);
  cpu_set_t set;
  ASSERT_EQ(::sched_getaffinity(0, sizeof set, &set), 0);
  EXPECT_EQ(read("threads0"), std::to_string(std::max(1, CPU_COUNT(&set) / 2)) + "\n");
  EXPECT_EQ(read("store0"), "0\n1\n");
  EXPECT_EQ(read("store1"), "0\n1\n");
  ::setenv("OMP_NUM_THREADS", "7", 1);
  EXPECT_EQ(run_shells(2, "echo $OMP_NUM_THREADS >$FOLDER/threads$R"), 0);
  ::unsetenv("OMP_NUM_THREADS");
  EXPECT_EQ(read("threads1"), "7\n");
}

TEST_F(LaunchChildren, ClosedStreamsAreNotTakenForTheStore) {
  const pid_t parent = in_process([] {
    ::close(STDIN_FILENO);
    ::close(STDOUT_FILENO);
    return run_children(2, {"-c", "echo noise; wc -c <$CINCH_NPROC_STORE >$FOLDER/$CINCH_NPROC_RANK"},
                        {.program = "/bin/sh"});
  });
  code_of(parent);
  EXPECT_EQ(read("0") + read("1"), "0\n0\n");
}

TEST_F(LaunchChildren, WhatCannotStartIsAnError) {
  EXPECT_EQ(code_of(in_process([] {
              try {
                return run_children(2, {}, {.program = "/nonexistent/cinch"});
              } catch (const ResourceError& error) {
                return std::string(error.what()).find("/nonexistent/cinch: No such file") == std::string::npos ? 1 : 42;
              }
            })),
            42);
  EXPECT_THROW(run_children(0, {}), UsageError);
  ::setenv("OMPI_COMM_WORLD_RANK", "1", 1);
  ::setenv("OMPI_COMM_WORLD_SIZE", "4", 1);
  EXPECT_THROW(run_children(2, {}), UsageError);
  ::unsetenv("OMPI_COMM_WORLD_RANK");
  ::unsetenv("OMPI_COMM_WORLD_SIZE");
}

/// Runs in the children of the test below only.
TEST(LaunchChild, FindsItsRank) {
  if (std::getenv(kChildRank) == nullptr) GTEST_SKIP() << "not a child";
  const Launch launch = resolve_launch(current_environment());
  std::ofstream(fs::path(std::getenv("FOLDER")) / std::to_string(launch.rank)) << describe(launch);
}

TEST_F(LaunchChildren, TheProgramItselfIsRun) {
  EXPECT_EQ(code_of(in_process([] {
              return run_children(2, {"--gtest_filter=LaunchChild.FindsItsRank", "--gtest_brief=1"});
            })),
            0);
  for (const char* rank : {"0", "1"}) EXPECT_EQ(read(rank), "2 processes, started by --nproc");
}

}  // namespace
}  // namespace cinch
