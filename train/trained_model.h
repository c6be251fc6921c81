// A model in training, which runs unit by unit (embedding, layers, head), so that each unit's weights, activations and
// gradients need exist only while it runs; and the frozen model beside it that it learns from.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/model_source.h"
#include "train/weight_unit.h"

namespace cinch {

class Teacher;

enum class Trainable { attention, all };

/// A weight that is trained.
struct Parameter {
  std::string name;  // Hugging Face name
  std::vector<int64_t> shape;
  bool attention = false;  // of a layer's attention
  size_t unit = 0, entry = 0;
};

/// What the loss is made of: after the final norms, in the compute type.
struct FinalStates {
  at::Tensor hidden, head;                  // (B, T, E), (V, E)
  at::Tensor teacher_hidden, teacher_head;  // undefined without a teacher
};

class TrainedModel {
 public:
  struct Options {
    Trainable trainable = Trainable::attention;
    at::ScalarType compute = at::kFloat;  // trained weights are kept in fp32 beside it (fp64 for fp64)
    at::Device device = at::kCPU;
    bool recompute = false;  // keep one activation per layer and run layers again in the backward pass
    ZeroLevel zero = {};
  };
  TrainedModel(std::shared_ptr<ModelSource> source, const Options& options,
               std::shared_ptr<ProcessGroup> group = single_process());

  /// Windows of tokens.
  struct Input {
    at::Tensor ids;             // (B, T) int64
    at::Tensor documents = {};  // (B, T) int64 on the host, as DecoderLayer::forward takes them; undefined: one each
  };

  /// Nothing is recorded.
  FinalStates forward(const Input& input, const Teacher* teacher = nullptr);

  /// Forward and backward pass of a part of a step: `loss` makes a scalar from the final states, and its gradients are
  /// added to the units'. With `last` the processes' gradients are summed, which finish_reductions() waits for.
  using Loss = std::function<at::Tensor(const FinalStates&)>;
  void accumulate(const Input& input, const Teacher* teacher, const Loss& loss, bool last);

  /// The same for a loss inside each layer: the attention's output against the teacher's on the teacher's own stream,
  /// as sum of squares over that of the target, for each sample; summed over the samples with `weights` (B), and over
  /// the layers, which do not see each other. Returns that sum over the number of layers.
  at::Tensor accumulate_local(const Input& input, const Teacher& teacher, const at::Tensor& weights, bool last);

  void finish_reductions();

  std::vector<WeightUnit>& units() { return units_; }
  const std::vector<Parameter>& parameters() const { return parameters_; }
  const ModelConfig& config() const { return source_->config(); }
  const ModelSource& source() const { return *source_; }
  const Options& options() const { return options_; }
  const std::shared_ptr<ProcessGroup>& group() const { return group_; }
  bool is_trained(const std::string& name) const { return places_.contains(name); }
  /// The unit of a weight: 0 the embedding, 1 + layer, and last the final norm and a head of its own.
  size_t unit_of(const WeightSpec& spec) const;
  /// By Hugging Face name, in the compute type, readable while its unit is in use.
  const at::Tensor& weight(const std::string& name) const;

  /// The trained weights as they are now, in the master type on the CPU, unit by unit; all processes must ask.
  void visit_trained(const std::function<void(const std::string& name, const at::Tensor& value)>& visit) const;

 private:
  friend class Teacher;
  struct Kept {
    at::Tensor before, after;  // the latter with its graph, unless layers run again
  };
  /// The buffers that a unit runs with: its trained weights, and what is shared of its frozen ones and the teacher's.
  std::vector<FlatWeights*> buffers(size_t unit, const Teacher* teacher);
  void start_use(size_t unit, const Teacher* teacher);
  void use(size_t unit, const Teacher* teacher);
  void release(size_t unit, const Teacher* teacher);
  /// Through the layers; keeps what the backward pass needs where `kept` is given.
  std::pair<at::Tensor, at::Tensor> run_layers(const Input& input, const Teacher* teacher, std::vector<Kept>* kept);
  FinalStates final_states(const at::Tensor& hidden, const at::Tensor& teacher_hidden, const Teacher* teacher) const;
  at::Tensor run_layer(int64_t layer, const at::Tensor& h, const at::Tensor& documents) const;
  size_t last_unit() const { return units_.size() - 1; }
  /// The unit's gradients, of which two units' are on their way at most: more would hold all of them in memory.
  void collect(size_t unit, bool last);

  std::shared_ptr<ModelSource> source_;
  Options options_;
  std::shared_ptr<ProcessGroup> group_;
  std::vector<WeightUnit> units_;
  std::vector<FlatWeights> frozen_units_;                    // where frozen weights are shared between the processes
  std::map<std::string, at::Tensor> frozen_;                 // by name: views of those, or tensors of their own
  std::map<std::string, std::pair<size_t, size_t>> places_;  // of trained weights: unit, entry
  std::vector<Parameter> parameters_;
  WeightUnit* reducing_ = nullptr;  // the unit that was collected last
};

/// The model that a student learns from. Weights outside the attention that are the student's own, bit for bit, and
/// frozen there, are not held again.
class Teacher {
 public:
  Teacher(std::shared_ptr<ModelSource> source, const TrainedModel& student);
  /// Bytes of weights that the student does not hold already, of all processes together.
  int64_t own_bytes() const { return own_bytes_; }
  /// Whether it has a weight of that name and shape.
  bool has(const std::string& name, const std::vector<int64_t>& shape) const;

 private:
  friend class TrainedModel;
  const at::Tensor& weight(const std::string& name) const;
  const ModelConfig& config() const { return source_->config(); }
  const ModelFamily& family() const { return source_->family(); }

  std::shared_ptr<ModelSource> source_;
  const TrainedModel* student_;
  mutable std::vector<FlatWeights> units_;
  std::map<std::string, at::Tensor> weights_;  // its own
  std::map<std::string, std::vector<int64_t>> shapes_;
  int64_t own_bytes_ = 0;
};

}  // namespace cinch
