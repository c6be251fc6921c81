// --kernel: which attention kernel a command takes.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace cinch {

/// For `kernel`, which the command hands to force_attention_kernel when it runs.
void add_kernel_option(CLI::App& command, std::string& kernel);

}  // namespace cinch
