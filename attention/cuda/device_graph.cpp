// libcinch_graph.so: CUDA graphs by LibTorch, whose headers need CUDA's. Loaded by attention/device_graph.cpp.
#include <ATen/cuda/CUDAGraph.h>
#include <c10/core/Event.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <stdio.h>

#include "attention/cuda/device_graph_abi.h"

namespace {

struct Graph {
  explicit Graph(c10::DeviceIndex device) : stream(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device)) {}

  c10::cuda::CUDAStream stream;  // recordings cannot be made on the default one
  at::cuda::CUDAGraph graph;
};

void wait(c10::cuda::CUDAStream waiting, c10::cuda::CUDAStream other) {
  c10::Event event(c10::DeviceType::CUDA);
  event.record(other.unwrap());
  event.block(waiting.unwrap());
}

template <class Action>
int32_t reported(char* error, uint64_t error_size, const Action& action) {
  try {
    action();
    return 0;
  } catch (const c10::Error& fault) {
    snprintf(error, error_size, "%s", fault.what_without_backtrace());
  } catch (const std::exception& fault) {
    snprintf(error, error_size, "%s", fault.what());
  }
  return -1;
}

}  // namespace

extern "C" void* cinch_graph_create(int32_t device, char* error, uint64_t error_size) {
  Graph* graph = nullptr;
  reported(error, error_size, [&] { graph = new Graph(static_cast<c10::DeviceIndex>(device)); });
  return graph;
}

extern "C" int32_t cinch_graph_run(void* handle, int32_t record, void (*work)(void*), void* context, char* error,
                                   uint64_t error_size) {
  auto& graph = *static_cast<Graph*>(handle);
  return reported(error, error_size, [&] {
    const c10::cuda::CUDAStream current = c10::cuda::getCurrentCUDAStream(graph.stream.device_index());
    wait(graph.stream, current);
    {
      const c10::cuda::CUDAStreamGuard guard(graph.stream);
      // Other threads of the program may allocate meanwhile.
      if (record != 0) graph.graph.capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
      work(context);
      if (record != 0) graph.graph.capture_end();
    }
    wait(current, graph.stream);
  });
}

extern "C" int32_t cinch_graph_replay(void* handle, char* error, uint64_t error_size) {
  return reported(error, error_size, [&] { static_cast<Graph*>(handle)->graph.replay(); });
}

extern "C" void cinch_graph_destroy(void* handle) {
  char error[256];
  reported(error, sizeof error, [] { c10::cuda::device_synchronize(); });
  delete static_cast<Graph*>(handle);
}
