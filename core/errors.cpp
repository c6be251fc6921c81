#include "core/errors.h"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <new>

namespace cinch {
namespace {

/// std::filesystem's message names functions of the library; this one names the file and the reason.
std::string text_of(const std::filesystem::filesystem_error& error) {
  return "cannot use " + error.path1().string() + ": " + error.code().message();
}

bool is_full_disk(const std::error_code& code) {
  return code == std::errc::no_space_on_device || code.value() == EDQUOT || code == std::errc::file_too_large;
}

void unroll(const std::exception& error, ErrorReport& report) {
  if (const auto* known = dynamic_cast<const Error*>(&error)) {
    report.exit_code = known->exit_code();
    if (!known->help().empty()) report.help = known->help();
  } else if (dynamic_cast<const std::bad_alloc*>(&error)) {
    report.exit_code = ExitCode::resources;
  }
  const auto* disk = dynamic_cast<const std::filesystem::filesystem_error*>(&error);
  if (disk != nullptr) {
    if (is_full_disk(disk->code())) report.exit_code = ExitCode::resources;
    report.help = "check the path, its permissions and its disk";
  }
  const bool out_of_memory = dynamic_cast<const std::bad_alloc*>(&error) != nullptr;
  report.lines.push_back(out_of_memory ? "not enough memory" : disk != nullptr ? text_of(*disk) : error.what());
  try {
    std::rethrow_if_nested(error);
  } catch (const std::exception& inner) {
    unroll(inner, report);
  } catch (...) {
    report.lines.emplace_back("unknown error");
  }
}

}  // namespace

ErrorReport describe_error(const std::exception& error) {
  ErrorReport report;
  unroll(error, report);
  std::reverse(report.lines.begin(), report.lines.end());
  return report;
}

}  // namespace cinch
