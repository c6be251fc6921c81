#include "eval/bench/device_timer.h"

#include <ATen/ATen.h>
#include <ATen/DeviceAccelerator.h>
#include <c10/core/Event.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <memory>

#include "attention/device_graph.h"
#include "core/plugin.h"
#include "eval/bench/statistics.h"

namespace cinch {
namespace {

constexpr int64_t kUnknownCache = int64_t{32} << 20;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// The works recorded as one graph, or null where the device or the work refuses.
std::unique_ptr<DeviceGraph> graph_of(c10::Device device, const std::vector<std::function<void()>>& works) {
  try {
    auto graph = std::make_unique<DeviceGraph>(device);
    // What a library prepares at first use must not be recorded; the first work has been called already.
    graph->warm_up(works.front());
    graph->record([&works] {
      for (const auto& work : works) work();
    });
    return graph;
  } catch (const std::exception&) {
    return nullptr;
  }
}

}  // namespace

double DeviceTimer::seconds_of(const std::function<void()>& work) const {
  if (device_.is_cpu()) {
    const double start = now();
    work();
    return now() - start;
  }
  const c10::Stream stream = at::accelerator::getCurrentStream(device_.index());
  c10::Event begin(device_.type(), c10::EventFlag::BACKEND_DEFAULT),
      end(device_.type(), c10::EventFlag::BACKEND_DEFAULT);
  begin.record(stream);
  work();
  end.record(stream);
  end.synchronize();
  return begin.elapsedTime(end) * 1e-3;
}

WorkTime DeviceTimer::time(const std::vector<std::function<void()>>& works) const {
  works.front()();  // a fault of the work shows here and not in a recording
  const auto graph = options_.graphs && device_.is_cuda() ? graph_of(device_, works) : nullptr;
  const auto once = [&] {
    if (graph != nullptr) return graph->replay();
    for (const auto& work : works) work();
  };
  (void)seconds_of(once);
  std::vector<double> seconds = {seconds_of(once)};
  const auto wanted = static_cast<int>(options_.fill / std::max(seconds.front(), 1e-6));
  const int replays = std::clamp(wanted, options_.least_replays, options_.most_replays);
  while (static_cast<int>(seconds.size()) < replays) seconds.push_back(seconds_of(once));
  const auto count = static_cast<double>(works.size());
  return {.seconds = median(seconds) / count,
          .fastest = percentile(seconds, 0) / count,
          .slowest = percentile(seconds, 1) / count,
          .replays = replays,
          .graph = graph != nullptr};
}

double DeviceTimer::copy_speed(int64_t bytes) const {
  const at::Tensor from = at::empty({bytes}, at::TensorOptions(at::kByte).device(device_)).fill_(1);
  at::Tensor to = at::empty_like(from);
  to.fill_(2);
  return 2 * static_cast<double>(bytes) / time({[&] { to.copy_(from); }}).seconds;
}

int64_t cache_near_processor(c10::Device device) {
  if (device.is_cuda()) {
    const std::vector<CinchCudaDevice> devices = describe_cuda_devices();
    const auto index = static_cast<size_t>(std::max<int>(device.index(), 0));
    if (index < devices.size() && devices[index].l2_bytes > 0) return static_cast<int64_t>(devices[index].l2_bytes);
    return kUnknownCache;
  }
  const long bytes = ::sysconf(_SC_LEVEL3_CACHE_SIZE);
  return bytes > 0 ? bytes : kUnknownCache;
}

}  // namespace cinch
