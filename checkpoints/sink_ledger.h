// What every sink keeps: the declared tensors, which of them were written, and their digests.
#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "checkpoints/tensor_source.h"

namespace cinch {

class SinkLedger {
 public:
  /// Throws UsageError on duplicates and CheckpointError on bad names or sizes.
  void declare(const std::vector<TensorInfo>& tensors, const std::string& file);
  /// Position of `name`; checks that `bytes` has the declared length (ShapeError) and that it is written once
  /// (UsageError); records the digest.
  size_t accept(const std::string& name, std::span<const std::byte> bytes);
  /// Throws CheckpointError naming up to five tensors that were declared and not written.
  void check_complete() const;

  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& digests() const { return digests_; }

 private:
  std::string file_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, size_t> index_;
  std::map<std::string, std::string> digests_;
};

}  // namespace cinch
