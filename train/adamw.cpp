#include "train/adamw.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

namespace cinch {

AdamW::AdamW(std::vector<AdamWGroup> groups, const AdamWOptions& options)
    : groups_(std::move(groups)), options_(options) {
  for (const AdamWGroup& group : groups_) {
    for (const at::Tensor& parameter : group.parameters) {
      const at::Tensor value = parameter.detach();
      state_.push_back(
          {at::zeros_like(value), at::zeros_like(value), at::zeros({}, value.options().dtype(at::kFloat))});
    }
  }
}

at::Tensor AdamW::clip(double most) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> gradients;
  for (const AdamWGroup& group : groups_) {
    for (const at::Tensor& parameter : group.parameters) {
      if (parameter.grad().defined()) gradients.push_back(parameter.grad());
    }
  }
  if (gradients.empty()) return at::zeros({}, at::kFloat);
  const at::Tensor norm = at::linalg_vector_norm(at::stack(at::_foreach_norm(gradients)));
  if (most > 0) at::_foreach_mul_(gradients, at::clamp_max(most / (norm + 1e-6), 1.0));
  return norm;
}

void AdamW::step(double factor) {
  const at::NoGradGuard no_grad;
  size_t next = 0;
  for (const AdamWGroup& group : groups_) {
    std::vector<at::Tensor> values, gradients, means, squares, steps;
    for (const at::Tensor& parameter : group.parameters) {
      State& state = state_[next++];
      if (!parameter.grad().defined()) continue;
      values.push_back(parameter);
      gradients.push_back(parameter.grad());
      means.push_back(state.mean);
      squares.push_back(state.square);
      steps.push_back(state.steps.add_(1));
    }
    if (values.empty()) continue;
    at::_fused_adamw_(values, gradients, means, squares, {}, steps, group.learning_rate * factor, options_.beta1,
                      options_.beta2, group.weight_decay, options_.eps, /*amsgrad=*/false, /*maximize=*/false);
  }
}

void AdamW::zero_grad() {
  for (const AdamWGroup& group : groups_) {
    for (const at::Tensor& parameter : group.parameters) parameter.mutable_grad() = at::Tensor();
  }
}

}  // namespace cinch
