// Tensors seen otherwise: a source whose tensors are made of another's when they are read.
#pragma once

#include "checkpoints/tensor_source.h"

namespace cinch {

/// A subclass fills `tensors_`, calls build_index() and says how one is read.
class TensorView : public TensorSource {
 public:
  explicit TensorView(const TensorSource& inner) : inner_(inner) {}
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  /// Makes the whole tensor.
  TensorData read_rows(const std::string& name, int64_t begin, int64_t end) const override;
  void release(const std::string& name) const override { inner_.release(name); }
  const std::map<std::string, std::string>& metadata() const override { return inner_.metadata(); }
  std::vector<std::filesystem::path> files() const override { return inner_.files(); }
  std::string format() const override { return inner_.format(); }

 protected:
  const TensorSource& inner_;
  std::vector<TensorInfo> tensors_;
};

}  // namespace cinch
