// A checkpoint format: recognises files, opens them, writes them. The explicit list is in format_list.cpp.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "checkpoints/tensor_sink.h"
#include "checkpoints/tensor_source.h"

namespace cinch {

class CheckpointFormat {
 public:
  virtual ~CheckpointFormat() = default;
  virtual std::string name() const = 0;
  /// By content (magic), not by name alone. `path` is a file, or a folder (safetensors: model.safetensors or an index;
  /// hdf5: model.h5).
  virtual bool recognises(const std::filesystem::path& path) const = 0;
  virtual std::unique_ptr<TensorSource> open(const std::filesystem::path& path) const = 0;
  virtual std::unique_ptr<TensorSink> create(const SinkOptions& options) const = 0;
  /// Types that `create` can store.
  virtual std::vector<Dtype> writable_dtypes() const = 0;
};

/// Every format, in the order in which they are tried.
const std::vector<const CheckpointFormat*>& checkpoint_formats();
const CheckpointFormat& checkpoint_format(const std::string& name);

/// Opens a file or folder by sniffing. Pickle files (.bin, .pt, .pth) are refused with the way out. Throws
/// CheckpointError.
std::unique_ptr<TensorSource> open_tensors(const std::filesystem::path& path);

}  // namespace cinch
