// Writing tensors crash-safely: declare everything, write each once in any order, commit. Until commit, only temporary
// names exist.
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "checkpoints/tensor_source.h"

namespace cinch {

struct SinkOptions {
  std::filesystem::path path;  // the file (gguf, hdf5, single safetensors), or the folder for sharded safetensors
  std::map<std::string, std::string> metadata = {};  // string pairs of the format's header
  uint64_t shard_bytes = 0;                          // safetensors: most bytes a shard may have; 0 = one file
};

class TensorSink {
 public:
  virtual ~TensorSink() = default;  // without commit: removes its temporary files; logs, never throws
  /// Declares every tensor, in file order (safetensors: wider types first), before the first write. Claims the disk
  /// space where it can. Throws UsageError on duplicates.
  virtual void declare(const std::vector<TensorInfo>& tensors) = 0;
  /// The whole tensor, bytes in the declared dtype (GGUF Q8_0: f32 bytes, quantised here). Throws ShapeError on a wrong
  /// length.
  virtual void write(const std::string& name, std::span<const std::byte> bytes) = 0;
  /// Throws CheckpointError when a declared tensor was not written. Flushes, renames.
  virtual void commit() = 0;
  /// Name -> XXH3-128 of the bytes written so far.
  virtual const std::map<std::string, std::string>& digests() const = 0;
};

}  // namespace cinch
