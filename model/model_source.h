// A model on disk: a Hugging Face folder, a cinch folder (the same with model.h5), or a .gguf file, all under Hugging
// Face tensor names.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoints/tensor_source.h"
#include "model/model_config.h"
#include "model/model_family.h"
#include "text/tokenizer.h"

namespace cinch {

class ModelSource {
 public:
  virtual ~ModelSource() = default;
  /// Opens and checks: every weight of the family present with its shape, all faults reported at once
  /// (CheckpointError).
  static std::shared_ptr<ModelSource> open(const std::filesystem::path& path);

  virtual const std::filesystem::path& path() const = 0;
  virtual const ModelConfig& config() const = 0;
  virtual const ModelFamily& family() const = 0;
  /// Tensors under Hugging Face names and layout (GGUF rows un-permuted, names mapped, quantised types dequantised on
  /// read).
  virtual const TensorSource& tensors() const = 0;
  /// nullptr when the model has none.
  virtual std::unique_ptr<Tokenizer> tokenizer() const = 0;
  /// The vocabulary in GGUF's form, for the GGUF writer; nothing when the model has no tokenizer.
  virtual std::optional<GgufVocabulary> vocabulary() const = 0;
  /// Files that a converted folder carries over (tokenizer.json, tokenizer_config.json, chat template,
  /// generation_config.json, licence ...): name -> content. For GGUF: synthesised from its metadata.
  virtual std::map<std::string, std::string> side_files() const = 0;
  /// Empty, or what was lost before cinch saw the model ("weights were Q4_1").
  virtual std::string quality_note() const = 0;

  /// A tensor as torch sees it. Shares the mapped memory when dtype matches and `copy` is false.
  at::Tensor tensor(const std::string& name, at::ScalarType dtype) const;
  TensorReader reader(at::ScalarType dtype) const;
};

at::ScalarType torch_dtype(Dtype dtype);  // throws UnsupportedError for types that torch cannot hold
Dtype file_dtype(at::ScalarType dtype);
/// A torch tensor over TensorData (zero copy when aligned; keeps the owner alive), converted to `dtype`.
at::Tensor to_torch(const TensorData& data, at::ScalarType dtype);
/// Contiguous bytes of a CPU tensor in `dtype`, for a TensorSink.
std::vector<std::byte> to_bytes(const at::Tensor& tensor, Dtype dtype);

}  // namespace cinch
