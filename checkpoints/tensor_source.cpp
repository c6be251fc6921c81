#include "checkpoints/tensor_source.h"

#include <fmt/format.h>

#include "checkpoints/layout.h"
#include "core/errors.h"

namespace cinch {

int64_t TensorInfo::numel() const {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

uint64_t TensorInfo::bytes() const { return static_cast<uint64_t>(numel()) * dtype_bits(dtype) / 8; }

const TensorInfo* TensorSource::find(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors()[found->second];
}

void TensorSource::build_index() {
  const auto& list = tensors();
  for (size_t i = 0; i < list.size(); ++i) {
    if (!index_.emplace(list[i].name, i).second) {
      throw CheckpointError(fmt::format("{}: tensor \"{}\" is listed twice", files().front().string(), list[i].name));
    }
  }
}

}  // namespace cinch
