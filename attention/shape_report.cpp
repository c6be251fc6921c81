#include "attention/shape_report.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "core/errors.h"

namespace cinch {

void ShapeReport::expect(const char* name, const at::Tensor& tensor, const std::vector<int64_t>& shape, bool wanted) {
  if (!wanted) {
    if (tensor.defined()) faults_.push_back(fmt::format("{} is there, but the spec has none", name));
  } else if (!tensor.defined()) {
    faults_.push_back(fmt::format("{} is missing", name));
  } else if (tensor.sizes() != at::IntArrayRef(shape)) {
    const std::vector<int64_t> found = tensor.sizes().vec();
    faults_.push_back(
        fmt::format("{} has shape ({}), expected ({})", name, fmt::join(found, ", "), fmt::join(shape, ", ")));
  }
}

void ShapeReport::add_unless(bool holds, const std::string& fault) {
  if (!holds) faults_.push_back(fault);
}

void ShapeReport::throw_if_any(const std::string& object) const {
  if (!faults_.empty()) throw ShapeError(fmt::format("{}: {}", object, fmt::join(faults_, "; ")));
}

}  // namespace cinch
