#include "core/errors.h"

#include <algorithm>
#include <new>

namespace cinch {
namespace {

void unroll(const std::exception& error, ErrorReport& report) {
  if (const auto* known = dynamic_cast<const Error*>(&error)) {
    report.exit_code = known->exit_code();
    if (!known->help().empty()) report.help = known->help();
  } else if (dynamic_cast<const std::bad_alloc*>(&error)) {
    report.exit_code = ExitCode::resources;
  }
  const bool out_of_memory = dynamic_cast<const std::bad_alloc*>(&error) != nullptr;
  report.lines.push_back(out_of_memory ? "not enough memory" : error.what());
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
