// Runs the program inside the test process and keeps what it printed.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/json.h"
#include "src/command.h"
#include "tests/support/assets.h"

namespace cinch {

struct Outcome {
  int code = 0;
  std::string out, err;
  Json json() const { return parse_json(out, "stdout"); }
};

inline Outcome run_cinch(const std::vector<std::string>& arguments) {
  std::vector<const char*> argv = {"cinch"};
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  Outcome outcome;
  outcome.code = run_program(static_cast<int>(argv.size()), argv.data());
  outcome.err = testing::internal::GetCapturedStderr();
  outcome.out = testing::internal::GetCapturedStdout();
  return outcome;
}

inline std::string stories_model() { return repo_file("examples/stories260K").string(); }
inline std::string tiny_model() { return repo_file("tests/golden/eval/model").string(); }

}  // namespace cinch
