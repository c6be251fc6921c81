// Times of the sm_90 latent decode: medians of graph replays over inputs that are rotated, beside the copy bandwidth of
// the same run.
#pragma once

#include <functional>
#include <random>

#include "tests/attention/cuda/latent_sm90_program.h"

namespace cinch::sm90 {
namespace {

__global__ void fill_kernel(uint32_t* words, size_t count) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count; i += size_t{gridDim.x} * blockDim.x) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u;
    x = (x ^ (x >> 15)) * 2246822519u;
    x ^= x >> 13;
    words[i] = (x & 0x807f807fu) | 0x3f003f00u;  // two bf16 of size 0.5 to 1, random signs and mantissas
  }
}

__global__ void copy_kernel(const uint4* __restrict__ from, uint4* __restrict__ to, size_t count) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count; i += size_t{gridDim.x} * blockDim.x) {
    to[i] = from[i];
  }
}

/// Median microseconds of `runs` replays of what `record` puts on a stream, divided by `inner`.
double median_us(const std::function<void(cudaStream_t)>& record, int inner, int runs) {
  cudaStream_t stream;
  check(cudaStreamCreate(&stream), "stream");
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  record(stream);
  check(cudaStreamEndCapture(stream, &graph), "capture");
  check(cudaGraphInstantiate(&replay, graph, 0), "graph");
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  std::vector<float> times;
  for (int i = 0; i < runs + 2; ++i) {
    check(cudaEventRecord(begin, stream), "event");
    check(cudaGraphLaunch(replay, stream), "replay");
    check(cudaEventRecord(end, stream), "event");
    check(cudaEventSynchronize(end), "replay");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end), "event");
    if (i >= 2) times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaGraphExecDestroy(replay);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  return times[times.size() / 2] * 1e3 / inner;
}

/// The best of several grids, and of the driver's own copy; each the median over replays.
double copy_bandwidth(Device<uint32_t>& pool) {
  const size_t words = (size_t{1} << 30) / 16;
  const auto* from = reinterpret_cast<const uint4*>(pool.get());
  auto* to = reinterpret_cast<uint4*>(pool.get()) + words;
  double us = median_us(
      [&](cudaStream_t s) {
        for (int i = 0; i < 4; ++i) check(cudaMemcpyAsync(to, from, words * 16, cudaMemcpyDeviceToDevice, s), "copy");
      },
      4, 5);
  for (const int blocks : {4, 8, 16, 32}) {
    us = std::min(us, median_us(
                          [&](cudaStream_t s) {
                            for (int i = 0; i < 4; ++i) {
                              copy_kernel<<<multiprocessors * blocks, 256, 0, s>>>(from, to, words);
                            }
                          },
                          4, 5));
  }
  return 2.0 * static_cast<double>(words) * 16 / us * 1e-3;  // GB/s
}

struct Shape {
  int batch, context;
};

void bench_shape(int rank, int rope, int heads, Shape shape, const Device<uint32_t>& pool, double copy,
                 const decode::Sm90Options& options = {}, int parts = 0) {
  const int width = rank + rope, pages = shape.context / CINCH_DECODE_PAGE;
  const int64_t page_elements = int64_t{CINCH_DECODE_PAGE} * width;
  const int64_t pool_pages = static_cast<int64_t>(pool.count()) * 2 / page_elements;
  const int64_t step_pages = int64_t{shape.batch} * pages;
  const int64_t bytes_cache = step_pages * page_elements * 2;
  // As many as a model has layers at least: a replay's own launch is not what is measured.
  int rotations = std::max(8, static_cast<int>(3 * l2_bytes / static_cast<size_t>(bytes_cache)) + 1);
  rotations = static_cast<int>(std::min<int64_t>(rotations, pool_pages / step_pages));
  std::mt19937 random(7);
  std::vector<int32_t> order(static_cast<size_t>(rotations * step_pages));
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  std::shuffle(order.begin(), order.end(), random);
  const std::vector<int32_t> lengths(static_cast<size_t>(shape.batch), shape.context);
  CinchDecodeStep step{};
  step.kind = CINCH_DECODE_LATENT;
  step.batch = shape.batch;
  step.n_heads = heads;
  step.n_kv_heads = 1;
  step.kv_lora_rank = rank;
  step.qk_rope_head_dim = rope;
  step.scale = 1.0f / std::sqrt(static_cast<float>(width));
  const Device<int32_t> table(order), dlengths(lengths);
  const Device<uint16_t> out(static_cast<size_t>(int64_t{shape.batch} * heads * rank));
  const Device<float> lse(static_cast<size_t>(shape.batch * heads));
  step.q = pool.get();
  step.q_head_stride = width;
  step.q_batch_stride = int64_t{heads} * width;
  step.keys = {pool.get(), page_elements, 0, width};
  step.block_table_stride = pages;
  step.lengths = dlengths.get();
  step.out = out.get();
  step.out_head_stride = rank;
  step.out_batch_stride = int64_t{heads} * rank;
  step.lse = lse.get();
  step.block_table = table.get();
  const Job work(step, dlengths.get(), parts);
  double us[2];
  for (const int combine : {0, 1}) {
    us[combine] = median_us(
        [&](cudaStream_t stream) {
          for (int i = 0; i < rotations; ++i) {
            DecodeJob one = work.job;
            one.step.block_table = table.get() + i * step_pages;
            run_job(one, combine == 1 ? decode::kAllPhases : decode::kStream, stream, options);
          }
        },
        rotations, 7);
  }
  const double bytes = static_cast<double>(bytes_cache) + 2.0 * shape.batch * heads * (width + rank);
  const double rate = bytes / us[1] * 1e-3, alone = bytes / us[0] * 1e-3;
  std::printf("%4d %4d %4d %5d %7d %4d %9.2f %8.0f %6.1f%% %9.2f %8.0f %6.1f%% %d parts%s\n", rank, rope, heads,
              shape.batch, shape.context, rotations, us[1], rate, 100 * rate / copy, us[0], alone, 100 * alone / copy,
              work.job.tiling.parts, options.tile_tokens == 32 ? "  32-token tiles" : "");
  std::fflush(stdout);
}

void bench(int only_rank) {
  Device<uint32_t> pool((size_t{6} << 30) / 4);
  fill_kernel<<<multiprocessors * 8, 256>>>(pool.get(), pool.count());
  check(cudaDeviceSynchronize(), "fill");
  const double copy = copy_bandwidth(pool);
  fill_kernel<<<multiprocessors * 8, 256>>>(pool.get(), pool.count());
  check(cudaDeviceSynchronize(), "fill");
  std::printf("copy: %.0f GB/s (1 GiB read and written, best of 5 ways)\n", copy);
  std::printf("                                      with combine               decode kernel alone\n");
  std::printf("   R   Dr    H batch context  rot        us     GB/s   copy        us     GB/s   copy\n");
  for (const int rank : {64, 96, 128, 192, 256, 320, 384, 448, 512}) {
    if (only_rank > 0 && rank != only_rank) continue;
    for (const int heads : {9, 16, 32, 64, 128}) {
      if (heads == 128 && rank != 128 && rank != 512) continue;
      for (const Shape shape : {Shape{64, 8192}, Shape{16, 32768}, Shape{1, 32768}}) {
        bench_shape(rank, 64, heads, shape, pool, copy);
        if (rank > 256 && heads == 16) bench_shape(rank, 64, heads, shape, pool, copy, {32});
      }
    }
  }
  std::printf("copy again: %.0f GB/s\n", copy_bandwidth(pool));
}

}  // namespace
}  // namespace cinch::sm90
