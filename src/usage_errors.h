// Command-line faults in cinch's own words: CLI11 finds them, these functions say which flag, what was seen and what to
// do.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "core/errors.h"

namespace cinch {

/// The UsageError that says what CLI11's `error` means for this command line.
UsageError usage_error(const CLI::App& app, const CLI::ParseError& error);

/// Prints an error as `error: ...`, its context, and `help: ...` on stderr; returns its exit code. Stack traces of
/// libraries are cut off.
int report_error(const std::exception& error);

/// Throws UsageError naming the nearest of `choices` unless `value` is one of them.
void require_choice(const std::string& flag, const std::string& value, const std::vector<std::string>& choices);

}  // namespace cinch
