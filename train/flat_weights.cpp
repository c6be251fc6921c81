#include "train/flat_weights.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/Allocator.h>

#include <algorithm>

namespace cinch {
namespace {

constexpr int64_t kAlignment = 128;  // elements, so that every share starts where vector instructions like it

/// Gives the storage memory, or takes it away. Views keep pointing at the storage, whatever it holds.
void resize_storage(const at::Tensor& tensor, size_t bytes) {
  c10::StorageImpl* storage = tensor.storage().unsafeGetStorageImpl();
  storage->set_data_ptr_noswap(c10::GetAllocator(tensor.device().type())->allocate(bytes));
  storage->set_nbytes(bytes);
}

}  // namespace

FlatLayout::FlatLayout(std::vector<std::pair<std::string, std::vector<int64_t>>> weights, int world) : world_(world) {
  for (auto& [name, shape] : weights) {
    int64_t count = 1;
    for (const int64_t extent : shape) count *= extent;
    entries_.push_back({std::move(name), std::move(shape), size_, count});
    size_ += count;
  }
  const int64_t unit = kAlignment * world;
  padded_ = (size_ + unit - 1) / unit * unit;
}

FlatWeights::FlatWeights(FlatLayout layout, at::ScalarType type, at::Device device, std::shared_ptr<ProcessGroup> group,
                         bool sharded)
    : layout_(std::move(layout)), group_(std::move(group)), sharded_(sharded), present_(true) {
  const at::NoGradGuard no_grad;
  whole_ = at::zeros({layout_.padded()}, at::TensorOptions(type).device(device));
  for (const FlatLayout::Entry& entry : layout_.entries())
    views_.push_back(whole_.narrow(0, entry.first, entry.count).view(entry.shape).variable_data());
  if (sharded_) {
    share_ = at::zeros({layout_.share()}, whole_.options());
    release();
  } else {
    share_ = whole_.narrow(0, group_->rank() * layout_.share(), layout_.share());
  }
}

void FlatWeights::set(size_t i, const at::Tensor& value) {
  const at::NoGradGuard no_grad;
  const FlatLayout::Entry& entry = layout_.entries()[i];
  const at::Tensor flat = value.reshape({entry.count});
  if (!sharded_) {
    whole_.narrow(0, entry.first, entry.count).copy_(flat);
    return;
  }
  const int64_t own = group_->rank() * layout_.share();
  const int64_t first = std::max(entry.first, own);
  const int64_t last = std::min(entry.first + entry.count, own + layout_.share());
  if (first < last)
    share_.narrow(0, first - own, last - first).copy_(flat.narrow(0, first - entry.first, last - first));
}

void FlatWeights::start_gather() {
  if (present_ || pending_) return;
  resize_storage(whole_, static_cast<size_t>(layout_.padded()) * whole_.element_size());
  pending_ = group_->all_gather(whole_, share_);
}

void FlatWeights::gather() {
  if (present_) return;
  start_gather();
  pending_();
  pending_ = nullptr;
  present_ = true;
}

void FlatWeights::release() {
  if (!sharded_ || !present_) return;
  resize_storage(whole_, 0);
  present_ = false;
}

void FlatWeights::start_update() {
  if (!sharded_) pending_ = group_->all_gather(whole_, share_);
}

void FlatWeights::finish_update() {
  if (pending_) pending_();
  pending_ = nullptr;
}

}  // namespace cinch
