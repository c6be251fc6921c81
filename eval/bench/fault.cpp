#include "eval/bench/fault.h"

#include "core/errors.h"

namespace cinch {

BenchFault explain_fault(const std::exception& fault) {
  const ErrorReport report = describe_error(fault);
  const std::string& text = report.lines.front();
  const auto says = [&](const char* words) { return text.find(words) != std::string::npos; };
  const std::string reason = text.substr(0, text.find('\n'));
  if (says("out of memory") || says("DefaultCPUAllocator") || report.exit_code == ExitCode::resources)
    return {"out of memory", reason};
  // The latter two are scaled_dot_product_attention's words for a backend that does not take a shape.
  const bool uncovered =
      report.exit_code == ExitCode::unsupported || says("No available kernel") || says("No viable backend");
  return {uncovered ? "not covered" : "failed", reason};
}

}  // namespace cinch
