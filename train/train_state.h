// States of a run on disk: written beside the training by every process for its share, complete or absent, and read by
// any number of processes.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/json.h"
#include "train/flat_weights.h"
#include "train/process_group.h"

namespace cinch {

/// This process's share of a flat buffer, (padded / world).
struct StateShare {
  std::string name;  // "layer_3.mean"
  at::Tensor value;
};

/// Steps whose states are complete, oldest first.
std::vector<int64_t> saved_steps(const std::filesystem::path& folder);

/// Writes folder/step_<n>/share_<r>_of_<world>.safetensors and, when all processes have, manifest.json, and renames the
/// folder, which had a temporary name before.
class StateWriter {
 public:
  /// The last `keep` states stay. All processes reach the folder.
  StateWriter(std::filesystem::path folder, std::shared_ptr<ProcessGroup> group, int keep);
  ~StateWriter();

  /// Copies the shares and writes them in the background; all processes start the same. A state that is still being
  /// written is finished first.
  void start(int64_t step, const std::vector<StateShare>& shares, Json manifest);
  bool busy() const { return writing_.valid(); }
  /// Whether this process's share is on disk, or could not be written.
  bool written() const;
  /// Waits for all processes and completes the state. Throws what writing threw, here or in another process.
  void finish();

 private:
  std::filesystem::path folder_;
  std::shared_ptr<ProcessGroup> group_;
  int keep_;
  int64_t step_ = 0;
  Json manifest_;
  std::future<void> writing_;
};

/// A complete state.
class SavedState {
 public:
  /// The latest; nothing when there is none. Throws CheckpointError when it is damaged.
  static std::optional<SavedState> latest(const std::filesystem::path& folder);

  int64_t step() const { return step_; }
  const JsonObject& manifest() const { return manifest_; }
  /// Elements [first, first + count) of the flat buffer `name` of `size` elements, whatever the number of processes was
  /// that wrote it; zeros beyond its size. Throws CheckpointError naming the file that is damaged, or is of another
  /// model.
  at::Tensor read(const std::string& name, int64_t size, int64_t first, int64_t count, at::ScalarType type) const;

 private:
  SavedState(std::filesystem::path folder, JsonObject manifest);

  std::filesystem::path folder_;
  JsonObject manifest_;
  int64_t step_, world_;
};

}  // namespace cinch
