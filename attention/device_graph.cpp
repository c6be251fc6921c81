#include "attention/device_graph.h"

#include <fmt/format.h>

#include <array>
#include <exception>
#include <utility>

#include "attention/cuda/device_graph_abi.h"
#include "core/errors.h"
#include "core/plugin.h"

namespace cinch {
namespace {

constexpr const char* kPlugin = "libcinch_graph.so";

/// Of the plug-in, looked for at first use: on the CPU nothing loads CUDA's libraries.
struct Functions {
  decltype(&cinch_graph_create) create;
  decltype(&cinch_graph_run) run;
  decltype(&cinch_graph_replay) replay;
  decltype(&cinch_graph_destroy) destroy;
};

const Functions& functions() {
  static const Functions found{
      reinterpret_cast<decltype(&cinch_graph_create)>(find_in_plugin(kPlugin, "cinch_graph_create")),
      reinterpret_cast<decltype(&cinch_graph_run)>(find_in_plugin(kPlugin, "cinch_graph_run")),
      reinterpret_cast<decltype(&cinch_graph_replay)>(find_in_plugin(kPlugin, "cinch_graph_replay")),
      reinterpret_cast<decltype(&cinch_graph_destroy)>(find_in_plugin(kPlugin, "cinch_graph_destroy"))};
  return found;
}

/// Work on its way through the C border, and what it threw there.
struct Call {
  const DeviceGraph::Work& work;
  std::exception_ptr thrown;

  static void run(void* context) {
    Call& call = *static_cast<Call*>(context);
    try {
      call.work();
    } catch (...) {
      call.thrown = std::current_exception();
    }
  }
};

}  // namespace

class DeviceGraph::Recording {
 public:
  explicit Recording(c10::Device device) : device_(device) {
    std::array<char, 512> reason{};
    graph_ = functions().create(device.has_index() ? device.index() : 0, reason.data(), reason.size());
    if (graph_ == nullptr) refuse(reason.data());
  }
  ~Recording() { functions().destroy(graph_); }
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  void run(const Work& work, bool record) {
    Call call{work, nullptr};
    std::array<char, 512> reason{};
    const int32_t status = functions().run(graph_, record ? 1 : 0, &Call::run, &call, reason.data(), reason.size());
    if (call.thrown) std::rethrow_exception(call.thrown);  // the cause of whatever the device said
    if (status != 0) refuse(reason.data());
  }
  void replay() {
    std::array<char, 512> reason{};
    if (functions().replay(graph_, reason.data(), reason.size()) != 0) refuse(reason.data());
  }

 private:
  [[noreturn]] void refuse(const char* reason) const {
    throw ResourceError(fmt::format("a CUDA graph cannot be used on {}: {}", device_.str(), reason),
                        "--no-graphs computes without");
  }

  c10::Device device_;
  void* graph_ = nullptr;
};

DeviceGraph::DeviceGraph(c10::Device device)
    : recording_(device.is_cpu() ? nullptr : std::make_unique<Recording>(device)) {}
DeviceGraph::~DeviceGraph() = default;
DeviceGraph::DeviceGraph(DeviceGraph&&) noexcept = default;
DeviceGraph& DeviceGraph::operator=(DeviceGraph&&) noexcept = default;

void DeviceGraph::warm_up(const Work& work) { recording_ != nullptr ? recording_->run(work, false) : work(); }

void DeviceGraph::record(Work work) {
  work_ = std::move(work);
  if (recording_ != nullptr) recording_->run(work_, true);
}

void DeviceGraph::replay() { recording_ != nullptr ? recording_->replay() : work_(); }

}  // namespace cinch
