// Writing a model folder or file: config.json, tensors, side files, one atomic commit. Used by convert and export.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "checkpoints/tensor_sink.h"
#include "model/model_config.h"
#include "model/model_source.h"

namespace cinch {

struct ModelWriterOptions {
  std::filesystem::path output;
  std::string format =
      "hf";  // hf (safetensors folder), native (the same for cinch alone, which may hold layers that no stock class
             // does), hdf5 (native with model.h5), safetensors (one file), gguf (one file)
  std::string dtype;  // "" = as the source; f32, f16, bf16, and q8_0 for gguf
  uint64_t shard_bytes = uint64_t{5} << 30;
  bool force = false;        // replace an existing output once the new one is complete
  std::string runtime = {};  // that must load the output, or an export of it; "": none in particular
  bool approximate = false;  // gguf: leave out what llama.cpp has not, where that is possible (runtime_rules.h)
};

/// Builds an output under a temporary name beside the target and swaps it in at `commit`. Without commit nothing
/// remains.
class ModelWriter {
 public:
  static std::unique_ptr<ModelWriter> create(const ModelConfig& config, const ModelSource& source,
                                             const ModelWriterOptions& options);
  virtual ~ModelWriter() = default;
  /// By Hugging Face name; any order; converted to the output dtype here.
  virtual void write(const std::string& name, const at::Tensor& tensor) = 0;
  /// Copies a tensor of the source unchanged (bytes, when the dtype is the same).
  virtual void copy(const std::string& name) = 0;
  /// An extra file of the folder (README.md, cinch.json); ignored for single-file formats.
  virtual void write_side_file(const std::string& name, const std::string& content) = 0;
  virtual const std::map<std::string, std::string>& digests() const = 0;  // tensor -> XXH3-128
  /// Flushes; the whole output is there under the temporary path that it returns, for a last check before `commit`.
  /// Side files may still follow.
  virtual std::filesystem::path complete() = 0;
  virtual void commit() = 0;
};

/// Throws UnsupportedError when the format holds stock model classes only and none of them holds such layers.
void check_holds_layers(const ModelConfig& config, const std::string& format);
/// hf, native and hdf5 write a folder, the others one file.
bool is_folder_format(const std::string& format);

/// The type that weights are rounded to in such an output (F32 for Q8_0, which is quantised from it). Throws
/// UsageError.
Dtype output_dtype(const ModelWriterOptions& options, const ModelConfig& config);

}  // namespace cinch
