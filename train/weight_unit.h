// One unit of a trained model (the embedding, a layer, or the head): its trained weights with their gradients and the
// optimizer's state, whole or shared between the processes after ZeRO (Rajbhandari et al., arXiv 1910.02054).
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "train/flat_weights.h"

namespace cinch {

/// What each process holds only its share of: 0 nothing, 1 master weights and moments, 2 gradients too, 3 weights too.
struct ZeroLevel {
  int level = 0;
  bool states() const { return level >= 1; }
  bool gradients() const { return level >= 2; }
  bool weights() const { return level >= 3; }
};

class WeightUnit {
 public:
  struct Options {
    at::ScalarType compute = at::kFloat;  // of the weights that the model runs with
    at::ScalarType master = at::kFloat;   // of the weights that the optimizer changes, of gradients and moments
    at::Device device = at::kCPU;
    ZeroLevel zero = {};
  };
  WeightUnit(std::string name, const FlatLayout& layout, const Options& options, std::shared_ptr<ProcessGroup> group);

  const std::string& name() const { return name_; }
  const FlatLayout& layout() const { return values_.layout(); }
  bool empty() const { return layout().size() == 0; }
  void set(size_t i, const at::Tensor& value);
  FlatWeights& values() { return values_; }
  /// A leaf of autograd in the compute type; to be read between gather() and release() of values().
  const at::Tensor& leaf(size_t i) const { return leaves_[i]; }

  /// After the unit's backward pass in a part of a step: adds what the leaves got to the gradient. With `last`, or
  /// where gradients are shared, the sum over the processes is started.
  void collect(bool last);
  void finish_reduction();
  void zero_gradient();

  /// What this process updates, (n): elements [first(), first() + n) of the flat buffer.
  int64_t first() const { return first_; }
  const at::Tensor& master() const { return master_; }
  const at::Tensor& gradient() const { return own_gradient_; }
  at::Tensor& mean() { return mean_; }
  at::Tensor& square() { return square_; }
  /// After master() has changed: the weights follow, on all processes.
  void start_update();
  void finish_update() { values_.finish_update(); }

  /// This process's 1 / world of a state tensor of this unit, (share).
  at::Tensor share_of(const at::Tensor& state) const;
  /// All of master(), gathered from the processes; all of them must ask. (size)
  at::Tensor whole_master() const;
  /// Entry i of something whole_master() gave, shaped.
  at::Tensor entry(const at::Tensor& whole, size_t i) const;

 private:
  std::string name_;
  Options options_;
  std::shared_ptr<ProcessGroup> group_;
  FlatWeights values_;
  std::vector<at::Tensor> leaves_;
  int64_t first_ = 0;
  at::Tensor master_, mean_, square_;
  at::Tensor gradient_;      // (padded), undefined where gradients are shared
  at::Tensor own_gradient_;  // like master_
  struct Reduction {
    ProcessGroup::Finish finish;
    at::Tensor share;  // to be added to own_gradient_; undefined: it went there
  };
  std::optional<Reduction> reduction_;
};

}  // namespace cinch
