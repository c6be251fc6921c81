// silu(gate) * up and its gradients in one pass each: plain operations write silu(gate) and read it again.
#include "core/cuda/elements.cuh"
#include "model/cuda/gated_abi.h"

namespace {

using cinch::narrow;
using cinch::wide;

constexpr int kThreads = 256;

template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads) gated_kernel(CinchGated in) {
  using Numbers = cinch::Pack<T, kCount>;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= in.count / kCount) return;
  const Numbers gate = static_cast<const Numbers*>(in.gate)[i], up = static_cast<const Numbers*>(in.up)[i];
  Numbers first, second, gradient;
  if (in.gradient != nullptr) gradient = static_cast<const Numbers*>(in.gradient)[i];
  for (int j = 0; j < kCount; ++j) {
    const float g = wide(gate.at[j]), u = wide(up.at[j]), sigmoid = 1 / (1 + expf(-g));
    if (in.gradient == nullptr) {
      narrow(g * sigmoid * u, first.at[j]);
    } else {
      const float d = wide(gradient.at[j]);
      narrow(d * u * sigmoid * (1 + g * (1 - sigmoid)), first.at[j]);
      narrow(d * g * sigmoid, second.at[j]);
    }
  }
  static_cast<Numbers*>(in.first)[i] = first;
  if (in.gradient != nullptr) static_cast<Numbers*>(in.second)[i] = second;
}

template <typename T>
void launch(const CinchGated& in, cudaStream_t stream) {
  constexpr int kWide = cinch::kPackBytes / sizeof(T);
  const bool packs = cinch::in_packs<T>(in.count, in.gate, in.up, in.gradient, in.first, in.second);
  const int64_t threads = packs ? in.count / kWide : in.count;
  const auto blocks = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
  if (packs) {
    gated_kernel<T, kWide><<<blocks, kThreads, 0, stream>>>(in);
  } else {
    gated_kernel<T, 1><<<blocks, kThreads, 0, stream>>>(in);
  }
}

}  // namespace

extern "C" int32_t cinch_cuda_gated(const CinchGated* work, void* stream, char* error, uint64_t error_size) {
  return cinch::launch_for(work->element, error, error_size, [&](auto number) {
    if (work->count > 0) launch<decltype(number)>(*work, static_cast<cudaStream_t>(stream));
  });
}
