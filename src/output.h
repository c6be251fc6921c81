// What commands print. Results go to stdout through these functions and nowhere else; progress and logs go to stderr
// (core/progress.h).
#pragma once

#include <cstdint>
#include <exception>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"

namespace cinch {

/// The reader of stdout went away (`cinch ... | head`): the program ends quietly with exit code 0.
struct ClosedPipe : std::exception {
  const char* what() const noexcept override { return "stdout was closed"; }
};

/// True with --json: print one object with print_json and nothing else. Set once by the program.
bool json_output();
void set_json_output(bool on);

/// Gives a standard stream that was closed before the start (`>&-`) a number of its own, so that no file of the program
/// gets it and no log ends up in that file. A closed stdout still cannot be written to.
void claim_standard_streams();

/// Writes and flushes. Throws ClosedPipe when nobody reads any more, ResourceError or Error on other faults.
void print(std::string_view text);
/// One object, indented, with a final newline. NaN and infinity become null.
void print_json(const Json& value);

/// "123 B", "40.5 KiB", "1.10 GiB"
std::string human_bytes(uint64_t bytes);
/// 134515008 -> "134.5 M"
std::string human_count(uint64_t count);

/// Rows of cells aligned in columns, two spaces apart; the first row is the heading. Columns after the first are
/// right-aligned.
std::string format_table(const std::vector<std::vector<std::string>>& rows);

/// True when stderr is a terminal and NO_COLOR is not set.
bool stderr_has_color();

}  // namespace cinch
