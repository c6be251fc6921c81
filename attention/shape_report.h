// Collects what does not fit, so that one message names everything.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace cinch {

class ShapeReport {
 public:
  /// `wanted` false: the tensor must be undefined.
  void expect(const char* name, const at::Tensor& tensor, const std::vector<int64_t>& shape, bool wanted = true);
  void add_unless(bool holds, const std::string& fault);
  /// Throws ShapeError listing every fault, as "<object>: ...".
  void throw_if_any(const std::string& object) const;

 private:
  std::vector<std::string> faults_;
};

}  // namespace cinch
