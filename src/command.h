// A command of the program: one file <name>_command.cpp, one line in command_list.cpp.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

namespace cinch {

struct Command {
  std::string name;
  /// Adds the subcommand with its options to `app`; its callback runs the command and throws cinch errors.
  std::function<void(CLI::App& app)> add;
};

const std::vector<Command>& commands();

/// What the program was called with, without its name.
const std::vector<std::string>& program_arguments();

/// Thrown by a callback that has said everything: the program ends with this code.
struct ExitWith {
  int code;
};

/// The whole program: parses, runs, prints errors; returns the exit code. argv as main gets it.
int run_program(int argc, const char* const* argv);

}  // namespace cinch
