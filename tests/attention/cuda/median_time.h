// Times of launches on the device.
#pragma once

#include <algorithm>
#include <vector>

#include "tests/attention/cuda/device_program.h"

namespace cinch::decode {

/// Microseconds of one of `count` launches that `enqueue(stream, i)` makes, i < count: median over graph replays.
template <class Enqueue>
double median_us(int count, Enqueue enqueue) {
  cudaStream_t stream;
  CINCH_CHECK(cudaStreamCreate(&stream));
  cudaGraph_t graph;
  CINCH_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < count; ++i) enqueue(stream, i);
  CINCH_CHECK(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t replay;
  CINCH_CHECK(cudaGraphInstantiate(&replay, graph, 0));
  cudaEvent_t begin, end;
  CINCH_CHECK(cudaEventCreate(&begin));
  CINCH_CHECK(cudaEventCreate(&end));
  constexpr int kReplays = 11;
  std::vector<float> times;
  for (int i = 0; i < kReplays + 2; ++i) {
    CINCH_CHECK(cudaEventRecord(begin, stream));
    CINCH_CHECK(cudaGraphLaunch(replay, stream));
    CINCH_CHECK(cudaEventRecord(end, stream));
    CINCH_CHECK(cudaEventSynchronize(end));
    float ms = 0;
    CINCH_CHECK(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 2) times.push_back(ms);
  }
  CINCH_CHECK(cudaEventDestroy(begin));
  CINCH_CHECK(cudaEventDestroy(end));
  CINCH_CHECK(cudaGraphExecDestroy(replay));
  CINCH_CHECK(cudaGraphDestroy(graph));
  CINCH_CHECK(cudaStreamDestroy(stream));
  std::sort(times.begin(), times.end());
  return static_cast<double>(times[times.size() / 2]) * 1e3 / count;
}

}  // namespace cinch::decode
