// Work on a device that is recorded once and replayed with one launch (a CUDA graph). On the CPU the work itself is
// called each time, so that tests run the same code.
#pragma once

#include <c10/core/Device.h>

#include <functional>
#include <memory>

namespace cinch {

/// Work that is recorded must not wait for the device, copy from or to pageable host memory, nor read anything else of
/// the host that changes: a replay uses the same memory with the same sizes. What it allocates belongs to the graph and
/// stays as long as the graph does.
class DeviceGraph {
 public:
  using Work = std::function<void()>;

  /// Throws Error where libcinch_graph.so is missing (CUDA only).
  explicit DeviceGraph(c10::Device device);
  ~DeviceGraph();
  DeviceGraph(DeviceGraph&&) noexcept;
  DeviceGraph& operator=(DeviceGraph&&) noexcept;

  /// Runs the work where it will be recorded, so that libraries allocate and look up what they do at first use.
  void warm_up(const Work& work);
  /// Records the work without running it. Once per graph. Throws ResourceError where the device refuses, and what the
  /// work throws.
  void record(Work work);
  /// On the current stream. After record().
  void replay();

 private:
  class Recording;
  std::unique_ptr<Recording> recording_;  // null on the CPU
  Work work_;
};

}  // namespace cinch
