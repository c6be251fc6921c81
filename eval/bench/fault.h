// What a fault in one case of a benchmark means for its row; the other cases go on.
#pragma once

#include <exception>
#include <string>

namespace cinch {

struct BenchFault {
  std::string status;  // "not covered", "out of memory", "failed"
  std::string reason;  // one line
};

BenchFault explain_fault(const std::exception& fault);

}  // namespace cinch
