// What a tensor file looks like to the rest of cinch: names, types, shapes, and bytes on demand. No torch, no model
// knowledge.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/dtype.h"

namespace cinch {

struct TensorInfo {
  std::string name;
  Dtype dtype = Dtype::kF32;
  std::vector<int64_t> shape;
  std::string stored_as;  // for quantised files the stored type ("Q4_1"); empty when stored as `dtype`

  int64_t numel() const;
  uint64_t bytes() const;  // numel x bits / 8; checked against overflow when the file is opened
};

/// Bytes of one tensor (or of some of its rows): either a view into a mapped file or an owned buffer, kept alive by
/// `owner`.
struct TensorData {
  TensorInfo info;
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;
};

/// A readable set of tensors. Opening validates every header field against the file before any use; reading is lazy.
/// Thread-safe for reading.
class TensorSource {
 public:
  virtual ~TensorSource() = default;
  /// In file order.
  virtual const std::vector<TensorInfo>& tensors() const = 0;
  /// nullptr when absent.
  const TensorInfo* find(const std::string& name) const;
  /// Throws CheckpointError when absent.
  virtual TensorData read(const std::string& name) const = 0;
  /// Rows [begin, end) of the first axis.
  virtual TensorData read_rows(const std::string& name, int64_t begin, int64_t end) const = 0;
  /// The pages behind a tensor will not be needed again soon.
  virtual void release(const std::string& name) const { (void)name; }
  virtual const std::map<std::string, std::string>& metadata() const = 0;
  virtual std::vector<std::filesystem::path> files() const = 0;
  virtual std::string format() const = 0;  // "safetensors", "hdf5", "gguf"
  /// XXH3-128 recorded in the file for this tensor; empty when the format has none.
  virtual std::string recorded_digest(const std::string& name) const {
    (void)name;
    return {};
  }

 protected:
  mutable std::map<std::string, size_t>
      index_;  // name -> position in tensors(), filled by implementations through build_index
  void build_index();
};

}  // namespace cinch
