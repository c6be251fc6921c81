#include "train/weight_unit.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

namespace cinch {

WeightUnit::WeightUnit(std::string name, const FlatLayout& layout, const Options& options,
                       std::shared_ptr<ProcessGroup> group)
    : name_(std::move(name)),
      options_(options),
      group_(std::move(group)),
      values_(layout, options.compute, options.device, group_, options.zero.weights()) {
  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < layout.entries().size(); ++i) leaves_.push_back(values_.weight(i).requires_grad_(true));
  const bool shared = options_.zero.states();
  const at::Tensor own = shared ? values_.share() : values_.whole();
  first_ = shared ? group_->rank() * layout.share() : 0;
  master_ = options_.compute == options_.master ? own : at::zeros(own.sizes(), own.options().dtype(options_.master));
  mean_ = at::zeros_like(master_);
  square_ = at::zeros_like(master_);
  if (!options_.zero.gradients()) gradient_ = at::zeros({layout.padded()}, master_.options());
  own_gradient_ = gradient_.defined() && !shared ? gradient_ : at::zeros_like(master_);
}

void WeightUnit::set(size_t i, const at::Tensor& value) {
  const at::NoGradGuard no_grad;
  values_.set(i, value);
  if (options_.compute == options_.master) return;
  const FlatLayout::Entry& entry = layout().entries()[i];
  const int64_t first = std::max(entry.first, first_);
  const int64_t last = std::min(entry.first + entry.count, first_ + master_.size(0));
  if (first >= last) return;
  master_.narrow(0, first - first_, last - first)
      .copy_(value.reshape({entry.count}).narrow(0, first - entry.first, last - first));
}

void WeightUnit::collect(bool last) {
  if (empty()) return;
  const at::NoGradGuard no_grad;
  finish_reduction();
  const at::Tensor whole = gradient_.defined() ? gradient_ : at::zeros({layout().padded()}, master_.options());
  for (size_t i = 0; i < leaves_.size(); ++i) {
    at::Tensor& found = leaves_[i].mutable_grad();
    if (!found.defined()) continue;
    const FlatLayout::Entry& entry = layout().entries()[i];
    whole.narrow(0, entry.first, entry.count).add_(found.reshape({entry.count}));
    found = at::Tensor();
  }
  if (options_.zero.gradients()) {
    const at::Tensor share = at::empty({layout().share()}, whole.options());
    reduction_ = {group_->reduce_scatter(share, whole), share};
  } else if (last) {
    reduction_ = {options_.zero.states() ? group_->reduce_scatter(own_gradient_, whole) : group_->all_reduce(whole),
                  {}};
  }
}

void WeightUnit::finish_reduction() {
  if (!reduction_) return;
  const at::NoGradGuard no_grad;
  reduction_->finish();
  if (reduction_->share.defined()) own_gradient_.add_(reduction_->share);
  reduction_.reset();
}

void WeightUnit::zero_gradient() {
  const at::NoGradGuard no_grad;
  if (gradient_.defined()) gradient_.zero_();
  own_gradient_.zero_();
}

void WeightUnit::start_update() {
  if (empty()) return;
  const at::NoGradGuard no_grad;
  if (options_.compute != options_.master) (options_.zero.states() ? values_.share() : values_.whole()).copy_(master_);
  if (options_.zero.states()) values_.start_update();
}

at::Tensor WeightUnit::share_of(const at::Tensor& state) const {
  if (options_.zero.states()) return state;
  return state.narrow(0, group_->rank() * layout().share(), layout().share());
}

at::Tensor WeightUnit::whole_master() const {
  if (!options_.zero.states()) return master_.narrow(0, 0, layout().size());
  const at::Tensor whole = at::empty({layout().padded()}, master_.options());
  if (!empty()) group_->all_gather(whole, master_)();
  return whole.narrow(0, 0, layout().size());
}

at::Tensor WeightUnit::entry(const at::Tensor& whole, size_t i) const {
  const FlatLayout::Entry& entry = layout().entries()[i];
  return whole.narrow(0, entry.first, entry.count).view(entry.shape);
}

}  // namespace cinch
