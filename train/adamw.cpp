#include "train/adamw.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <map>
#include <utility>

namespace cinch {

AdamW::AdamW(std::vector<AdamWPiece> pieces, const AdamWOptions& options)
    : pieces_(std::move(pieces)), options_(options) {}

at::Tensor AdamW::squared_norm() const {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> gradients;
  for (const AdamWPiece& piece : pieces_) gradients.push_back(piece.gradient);
  if (gradients.empty()) return at::zeros({}, at::kDouble);
  return at::stack(at::_foreach_norm(gradients)).to(at::kDouble).square().sum();
}

void AdamW::scale_gradients(const at::Tensor& factor) {
  const at::NoGradGuard no_grad;
  for (AdamWPiece& piece : pieces_) piece.gradient.mul_(factor);
}

void AdamW::step(const std::vector<double>& learning_rates, bool relative) {
  const at::NoGradGuard no_grad;
  ++steps_;
  struct Lists {
    std::vector<at::Tensor> values, gradients, means, squares, steps;
  };
  at::Tensor count;
  std::map<std::pair<double, double>, Lists> groups;  // of one learning rate and decay
  for (const AdamWPiece& piece : pieces_) {
    const double rate = learning_rates.at(static_cast<size_t>(piece.rate)) * (relative ? piece.scale : 1.0);
    Lists& lists = groups[{rate, piece.weight_decay}];
    lists.values.push_back(piece.value);
    lists.gradients.push_back(piece.gradient);
    lists.means.push_back(piece.mean);
    lists.squares.push_back(piece.square);
    if (!count.defined()) count = at::full({}, static_cast<double>(steps_), piece.value.options().dtype(at::kFloat));
    lists.steps.push_back(count);
  }
  for (auto& [options, lists] : groups) {
    at::_fused_adamw_(lists.values, lists.gradients, lists.means, lists.squares, {}, lists.steps, options.first,
                      options_.beta1, options_.beta2, options.second, options_.eps, /*amsgrad=*/false,
                      /*maximize=*/false);
  }
}

void AdamW::reset() {
  const at::NoGradGuard no_grad;
  for (AdamWPiece& piece : pieces_) {
    piece.mean.zero_();
    piece.square.zero_();
  }
  steps_ = 0;
}

}  // namespace cinch
