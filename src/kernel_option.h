// --kernel: which attention kernel a command takes.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace cinch {

/// For `kernel`, which the command hands to force_attention_kernel when it runs; `more` are names that the command
/// takes itself.
void add_kernel_option(CLI::App& command, std::string& kernel, const std::vector<std::string>& more = {});

}  // namespace cinch
