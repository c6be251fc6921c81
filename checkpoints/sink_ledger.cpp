#include "checkpoints/sink_ledger.h"

#include <fmt/format.h>

#include "checkpoints/layout.h"
#include "core/digest.h"
#include "core/errors.h"

namespace cinch {

void SinkLedger::declare(const std::vector<TensorInfo>& tensors, const std::string& file) {
  file_ = file;
  tensors_ = tensors;
  for (size_t i = 0; i < tensors.size(); ++i) {
    check_tensor_name(tensors[i].name, file);
    checked_bytes(tensors[i].shape, dtype_bits(tensors[i].dtype),
                  fmt::format("{}: tensor \"{}\"", file, tensors[i].name));
    if (!index_.emplace(tensors[i].name, i).second) {
      throw UsageError(fmt::format("{}: tensor \"{}\" is declared twice", file, tensors[i].name));
    }
  }
}

size_t SinkLedger::accept(const std::string& name, std::span<const std::byte> bytes) {
  const auto found = index_.find(name);
  if (found == index_.end()) throw UsageError(fmt::format("{}: tensor \"{}\" was not declared", file_, name));
  const TensorInfo& info = tensors_[found->second];
  if (bytes.size() != info.bytes()) {
    throw ShapeError(
        fmt::format("{}: tensor \"{}\" needs {} bytes, {} were given", file_, name, info.bytes(), bytes.size()));
  }
  if (!digests_.emplace(name, xxh3_hex(bytes)).second) {
    throw UsageError(fmt::format("{}: tensor \"{}\" is written twice", file_, name));
  }
  return found->second;
}

void SinkLedger::check_complete() const {
  std::string missing;
  size_t count = 0;
  for (const TensorInfo& info : tensors_) {
    if (digests_.contains(info.name)) continue;
    if (++count <= 5) missing += fmt::format("{}\"{}\"", missing.empty() ? "" : ", ", info.name);
  }
  if (count > 0) {
    throw CheckpointError(
        fmt::format("{}: {} declared tensors were not written: {}{}", file_, count, missing, count > 5 ? ", ..." : ""));
  }
}

}  // namespace cinch
