// Tests of several processes: the test program runs itself again, once for each.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/assets.h"
#include "train/process_group.h"

namespace cinch {

/// What this process is in a test that run_processes() started: rank -1 where it is the test itself.
inline int test_rank() {
  const char* rank = std::getenv("CINCH_TEST_RANK");
  return rank == nullptr ? -1 : std::stoi(rank);
}

/// In a child: meets the others.
inline std::shared_ptr<ProcessGroup> join_test_processes() {
  return join_processes({.rank = test_rank(),
                         .world = std::stoi(std::getenv("CINCH_TEST_WORLD")),
                         .file = std::getenv("CINCH_TEST_STORE"),
                         .interface = "lo",
                         .timeout = std::chrono::seconds(120)},
                        at::kCPU);
}

/// Runs the current test in `world` children and fails with what they said unless all pass. `folder` is for their files
/// and theirs to share.
inline void run_processes(int world, const std::filesystem::path& folder, const std::string& argument = "") {
  const auto* test = testing::UnitTest::GetInstance()->current_test_info();
  const std::string filter = std::string("--gtest_filter=") + test->test_suite_name() + "." + test->name();
  static int runs = 0;
  const std::filesystem::path store = folder / ("store" + std::to_string(runs++));
  std::vector<pid_t> children;
  for (int rank = 0; rank < world; ++rank) {
    std::vector<std::string> environment;
    for (char** entry = environ; *entry != nullptr; ++entry) environment.emplace_back(*entry);
    environment.push_back("CINCH_TEST_RANK=" + std::to_string(rank));
    environment.push_back("CINCH_TEST_WORLD=" + std::to_string(world));
    environment.push_back("CINCH_TEST_STORE=" + store.string());
    environment.push_back("CINCH_TEST_FOLDER=" + folder.string());
    environment.push_back("CINCH_TEST_ARGUMENT=" + argument);
    environment.push_back("OMP_NUM_THREADS=1");
    std::vector<char*> variables;
    for (std::string& entry : environment) variables.push_back(entry.data());
    variables.push_back(nullptr);
    std::string program = "/proc/self/exe", option = filter;
    char* arguments[] = {program.data(), option.data(), nullptr};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    const std::string log = (folder / ("log" + std::to_string(rank))).string();
    posix_spawn_file_actions_addopen(&actions, 1, log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    pid_t child = 0;
    ASSERT_EQ(posix_spawn(&child, "/proc/self/exe", &actions, nullptr, arguments, variables.data()), 0);
    posix_spawn_file_actions_destroy(&actions);
    children.push_back(child);
  }
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(600);
  std::vector<int> codes(children.size(), -1);
  for (size_t left = children.size(); left > 0;) {
    const bool late = std::chrono::steady_clock::now() > deadline;
    for (size_t i = 0; i < children.size(); ++i) {
      int status = 0;
      if (codes[i] != -1) continue;
      if (late) kill(children[i], SIGKILL);
      if (waitpid(children[i], &status, late ? 0 : WNOHANG) != children[i]) continue;
      codes[i] = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      --left;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  for (size_t i = 0; i < codes.size(); ++i) {
    std::stringstream said;
    said << std::ifstream(folder / ("log" + std::to_string(i))).rdbuf();
    EXPECT_EQ(codes[i], 0) << "process " << i << " of " << world << ":\n" << said.str();
  }
}

}  // namespace cinch
