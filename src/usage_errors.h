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

/// What no conversion of CLI11 finds in the given values of the command and of `app`: an empty text, a whole number out
/// of range. Throws UsageError naming the flag.
void check_given_values(const CLI::App& app);

/// "see `cinch convert --help`", for the command of this command line.
std::string help_of_command(const CLI::App& app);

/// Prints an error as `error: ...`, its context, and `help: ...` on stderr; returns its exit code. Stack traces of
/// libraries are cut off. `usage_help` stands in where a usage error names no way out.
int report_error(const std::exception& error, const std::string& usage_help = {});

/// Throws UsageError naming the nearest of `choices` unless `value` is one of them.
void require_choice(const std::string& flag, const std::string& value, const std::vector<std::string>& choices);

}  // namespace cinch
