// The weights of one part of a model in one buffer, of which each process may hold only its share.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "train/process_group.h"

namespace cinch {

/// Where each weight lies in a flat buffer, which is padded so that it divides into equal shares.
class FlatLayout {
 public:
  struct Entry {
    std::string name;
    std::vector<int64_t> shape;
    int64_t first = 0, count = 0;  // elements
  };
  FlatLayout() = default;
  FlatLayout(std::vector<std::pair<std::string, std::vector<int64_t>>> weights, int world);

  const std::vector<Entry>& entries() const { return entries_; }
  int64_t size() const { return size_; }      // of all weights, without padding
  int64_t padded() const { return padded_; }  // a multiple of world x 128
  int64_t share() const { return padded_ / world_; }

 private:
  std::vector<Entry> entries_;
  int64_t size_ = 0, padded_ = 0;
  int world_ = 1;
};

class FlatWeights {
 public:
  /// `sharded`: each process keeps 1 / world, and the whole exists between gather() and release() alone.
  FlatWeights(FlatLayout layout, at::ScalarType type, at::Device device, std::shared_ptr<ProcessGroup> group,
              bool sharded);

  const FlatLayout& layout() const { return layout_; }
  bool sharded() const { return sharded_; }
  /// Keeps what of entry i this process holds.
  void set(size_t i, const at::Tensor& value);
  /// A view of entry i, shaped, that stays the same tensor while its memory comes and goes. Autograd does not take a
  /// gather for a change of it.
  const at::Tensor& weight(size_t i) const { return views_[i]; }
  /// (padded); without memory while released.
  const at::Tensor& whole() const { return whole_; }
  /// (padded / world): its place in the whole, or what is kept of it.
  const at::Tensor& share() const { return share_; }

  void start_gather();
  void gather();   // finishes one that was started, or does it all; nothing where the whole is there
  void release();  // nothing unless sharded
  /// After shares have changed: brings the whole up to date where it is kept.
  void start_update();
  void finish_update();

 private:
  FlatLayout layout_;
  std::shared_ptr<ProcessGroup> group_;
  bool sharded_, present_;
  at::Tensor whole_, share_;
  std::vector<at::Tensor> views_;
  ProcessGroup::Finish pending_;
};

}  // namespace cinch
