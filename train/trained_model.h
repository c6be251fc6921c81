// A model whose weights autograd knows, and a frozen one beside it that shares what is the same.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "model/model_source.h"

namespace cinch {

enum class Trainable { attention, all };

/// A weight that is trained: a leaf of autograd in fp32 (fp64 when computing in fp64), whatever the compute type.
struct Parameter {
  std::string name;  // Hugging Face name
  at::Tensor value;
  int64_t layer = -1;      // -1: embedding, final norm, head
  bool attention = false;  // of the layer's attention
};

class TrainedModel {
 public:
  struct Options {
    Trainable trainable = Trainable::attention;
    at::ScalarType compute = at::kFloat;
    at::Device device = at::kCPU;
    bool recompute = false;  // keep one activation per layer and run layers again in the backward pass
  };
  TrainedModel(std::shared_ptr<ModelSource> source, const Options& options);

  /// ids (B, T) int64 -> (B, T, E) after the final norm, in the compute type.
  at::Tensor hidden(const at::Tensor& ids) const;
  at::Tensor head() const;  // (V, E) in the compute type
  const std::vector<Parameter>& parameters() const { return parameters_; }
  const ModelConfig& config() const { return source_->config(); }
  const ModelSource& source() const { return *source_; }
  /// By Hugging Face name: a parameter, or a frozen weight in the compute type.
  const at::Tensor& weight(const std::string& name) const { return weights_.at(name); }

 private:
  at::Tensor compute_weight(const std::string& name) const;

  std::shared_ptr<ModelSource> source_;
  Options options_;
  std::map<std::string, at::Tensor> weights_;
  std::vector<Parameter> parameters_;
};

/// The model that a student learns from. Weights outside the attention that are the student's own, bit for bit, and
/// frozen there, are not loaded again.
class Teacher {
 public:
  Teacher(std::shared_ptr<ModelSource> source, const TrainedModel& student, at::ScalarType compute, at::Device device);
  at::Tensor hidden(const at::Tensor& ids) const;
  const at::Tensor& head() const;
  /// Bytes of weights that the student does not hold already.
  int64_t own_bytes() const { return own_bytes_; }

 private:
  std::shared_ptr<ModelSource> source_;
  std::map<std::string, at::Tensor> weights_;
  int64_t own_bytes_ = 0;
};

}  // namespace cinch
