// How benchmarks time work on a device.
#pragma once

#include <c10/core/Device.h>

#include <functional>
#include <vector>

namespace cinch {

/// Seconds of one piece of work.
struct WorkTime {
  double seconds = 0;  // median
  double fastest = 0, slowest = 0;
  int replays = 0;
  bool graph = false;  // from replays of a CUDA graph
};

class DeviceTimer {
 public:
  struct Options {
    bool graphs = true;     // CUDA: record the work once and replay it, so that launches cost as little as in serving
    double fill = 0.05;     // seconds that the replays of one measurement should take together
    int least_replays = 5;  // after one that is not counted
    int most_replays = 50;
  };
  DeviceTimer(c10::Device device, Options options) : device_(device), options_(options) {}
  explicit DeviceTimer(c10::Device device) : DeviceTimer(device, Options()) {}

  /// All works one after the other, again and again: the time of one, all its launches included. Work that cannot be
  /// recorded is called each time. Throws what the work throws.
  WorkTime time(const std::vector<std::function<void()>>& works) const;

  /// Bytes read + written per second by the device's own copy of `bytes` (memcpy on the CPU).
  double copy_speed(int64_t bytes) const;

 private:
  double seconds_of(const std::function<void()>& work) const;

  c10::Device device_;
  Options options_;
};

/// Bytes of the caches near the processor, all of which repeated work must not fit into: L2 of a GPU, the last level of
/// a CPU (32 MiB where the system does not say).
int64_t cache_near_processor(c10::Device device);

}  // namespace cinch
