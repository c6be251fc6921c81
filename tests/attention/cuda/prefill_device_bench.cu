// Times of the prefill kernels: medians over launches one after the other, all kernels of a forward or of a backward
// included. Operations are those of the products of matrices that the definition has, of visible pairs alone: 2 in the
// forward, 5 in the backward (the two passes of ours multiply 7 or 8).
#include <algorithm>
#include <cmath>

#include "tests/attention/cuda/prefill_program.h"

namespace cinch::prefill {
namespace {

struct Shape {
  const char* name;
  int n_heads, n_kv_heads, head_dim, v_head_dim, window;
  float softcap;
};
constexpr Shape kShapes[] = {
    {"Llama-3-8B", 32, 8, 128, 128, 0, 0},           {"of 64 columns", 32, 8, 64, 64, 0, 0},
    {"groups of 7", 28, 4, 128, 128, 0, 0},          {"latent, expanded", 16, 16, 192, 128, 0, 0},
    {"window, soft cap", 16, 8, 256, 256, 4096, 50}, {"width 80", 32, 8, 80, 80, 0, 0},
};

__global__ void fill_kernel(uint32_t* words, uint64_t count) {
  for (uint64_t i = blockIdx.x * uint64_t{blockDim.x} + threadIdx.x; i < count; i += uint64_t{gridDim.x} * blockDim.x) {
    uint32_t hash = static_cast<uint32_t>(i * 2654435761u) ^ static_cast<uint32_t>(i >> 13);
    hash = (hash ^ (hash >> 15)) * 0x85ebca6bu;
    hash ^= hash >> 13;
    words[i] = (hash & 0x80ff80ffu) | 0x3e003e00u;  // two bfloat16 numbers of either sign in 2^-3 .. 2^1
  }
}

DeviceMemory random_numbers(int64_t count) {
  DeviceMemory memory(static_cast<uint64_t>(count) * 2);
  fill_kernel<<<1024, 256>>>(memory.as<uint32_t>(), static_cast<uint64_t>(count) / 2);
  CINCH_CHECK(cudaGetLastError());
  return memory;
}

double median_us(CinchPrefillRun run, const CinchPrefill& work) {
  cudaEvent_t begin, end;
  CINCH_CHECK(cudaEventCreate(&begin));
  CINCH_CHECK(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < 13; ++i) {
    char error[256] = "";
    CINCH_CHECK(cudaEventRecord(begin));
    if (run(&work, nullptr, error, sizeof error) != 0) {
      printf("  %s\n", error);
      exit(2);
    }
    CINCH_CHECK(cudaEventRecord(end));
    CINCH_CHECK(cudaEventSynchronize(end));
    float ms = 0;
    CINCH_CHECK(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 2) times.push_back(ms);
  }
  CINCH_CHECK(cudaEventDestroy(begin));
  CINCH_CHECK(cudaEventDestroy(end));
  std::sort(times.begin(), times.end());
  return static_cast<double>(times[times.size() / 2]) * 1e3;
}

void time_shape(const Shape& shape, int batch, int tokens) {
  const auto array = [&](const DeviceMemory& memory, int heads, int columns) {
    return CinchPrefillArray{memory.as(), int64_t{tokens} * heads * columns, columns, int64_t{heads} * columns};
  };
  const auto count = [&](int heads, int columns) { return int64_t{batch} * tokens * heads * columns; };
  const int H = shape.n_heads, K = shape.n_kv_heads, D = shape.head_dim, Dv = shape.v_head_dim;
  const DeviceMemory q = random_numbers(count(H, D)), k = random_numbers(count(K, D)), v = random_numbers(count(K, Dv)),
                     d_out = random_numbers(count(H, Dv)), out = random_numbers(count(H, Dv)),
                     d_q = random_numbers(count(H, D)), d_k = random_numbers(count(K, D)),
                     d_v = random_numbers(count(K, Dv));
  const DeviceMemory lse(static_cast<uint64_t>(count(H, 1)) * 4), states(static_cast<uint64_t>(count(H, 1)) * 16);
  CinchPrefill work{};
  work.type = CINCH_PREFILL_BF16;
  work.batch = batch;
  work.n_heads = H;
  work.n_kv_heads = K;
  work.queries = work.keys = tokens;
  work.head_dim = D;
  work.v_head_dim = Dv;
  work.window = shape.window;
  work.softcap = shape.softcap;
  work.scale = 1 / std::sqrt(static_cast<float>(D));
  work.q = array(q, H, D);
  work.k = array(k, K, D);
  work.v = array(v, K, Dv);
  work.out = array(out, H, Dv);
  work.d_out = array(d_out, H, Dv);
  work.d_q = array(d_q, H, D);
  work.d_k = array(d_k, K, D);
  work.d_v = array(d_v, K, Dv);
  work.lse = lse.as<float>();
  work.row_states = states.as();
  double pairs = 0;
  for (int t = 0; t < tokens; ++t) pairs += shape.window > 0 ? std::min(t + 1, shape.window) : t + 1;
  pairs *= static_cast<double>(batch) * H;
  const double forward = median_us(&cinch_prefill_forward, work), backward = median_us(&cinch_prefill_backward, work);
  printf("%-18s %3d %6d  %10.1f us %6.1f TFLOP/s  %10.1f us %6.1f TFLOP/s\n", shape.name, batch, tokens, forward,
         2 * pairs * (D + Dv) / forward * 1e-6, backward, 2 * pairs * (3 * D + 2 * Dv) / backward * 1e-6);
}

}  // namespace

int run_prefill_benchmark() {
  printf("%-18s %3s %6s  %30s  %30s\n", "shape", "B", "T", "forward", "backward");
  for (const Shape& shape : kShapes) {
    for (const auto& [batch, tokens] : {std::pair(16, 1024), std::pair(4, 4096), std::pair(1, 16384)})
      time_shape(shape, batch, tokens);
  }
  return 0;
}

}  // namespace cinch::prefill
