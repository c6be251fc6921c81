// AdamW (Loshchilov, Hutter, arXiv 1711.05101) through ATen's fused kernel, with groups of parameters that have rates
// of their own.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace cinch {

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
};

struct AdamWGroup {
  std::vector<at::Tensor> parameters;  // leaves of one type on one device
  double learning_rate = 1e-4;         // times the schedule's factor
  double weight_decay = 0.01;
};

class AdamW {
 public:
  AdamW(std::vector<AdamWGroup> groups, const AdamWOptions& options);

  /// 2-norm of all gradients together, as a scalar tensor (nothing waits for the device); gradients above `most` are
  /// scaled down to it (0: left as they are). Parameters without a gradient count as zero.
  at::Tensor clip(double most);
  /// One step at learning rate x factor. Parameters without a gradient stay as they are.
  void step(double factor);
  void zero_grad();

  /// For saving and resuming: of one parameter each, in the order of the groups.
  struct State {
    at::Tensor mean, square;  // like the parameter
    at::Tensor steps;         // scalar fp32
  };
  std::vector<State>& state() { return state_; }
  const std::vector<State>& state() const { return state_; }

 private:
  std::vector<AdamWGroup> groups_;
  AdamWOptions options_;
  std::vector<State> state_;
};

}  // namespace cinch
