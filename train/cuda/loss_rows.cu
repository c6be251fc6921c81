// Cross entropy, KL and their gradient from two rows of logits: one block for each token reads both rows twice and
// writes the gradient over the student's. Plain operations on (tokens, vocabulary) in fp32 move six times the bytes.
#include <math.h>

#include "core/cuda/elements.cuh"
#include "train/cuda/loss_rows_abi.h"

namespace {

using cinch::narrow;
using cinch::wide;

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;

__device__ float capped(float x, float cap) { return cap > 0 ? cap * tanhf(x / cap) : x; }

/// Largest number so far and the sum of exp(x - largest).
struct Normaliser {
  float largest = -INFINITY, sum = 0;

  __device__ void add(float x) {
    if (x > largest) {
      sum *= expf(largest - x);  // 0 at first
      largest = x;
    }
    sum += expf(x - largest);
  }
  __device__ void add(const Normaliser& other) {
    if (other.sum == 0) return;
    const float top = fmaxf(largest, other.largest);
    sum = (sum == 0 ? 0 : sum * expf(largest - top)) + other.sum * expf(other.largest - top);
    largest = top;
  }
  __device__ float log_sum() const { return largest + logf(sum); }
};

__device__ Normaliser from_lane(const Normaliser& x, int lane) {
  Normaliser other;
  other.largest = __shfl_xor_sync(0xffffffffu, x.largest, lane);
  other.sum = __shfl_xor_sync(0xffffffffu, x.sum, lane);
  return other;
}
__device__ float from_lane(float x, int lane) { return __shfl_xor_sync(0xffffffffu, x, lane); }
__device__ void join(Normaliser& x, const Normaliser& other) { x.add(other); }
__device__ void join(float& x, float other) { x += other; }

/// Over all threads of the block, in a fixed order; every thread gets the result.
template <typename X>
__device__ X over_block(X x) {
  __shared__ alignas(16) char memory[kWarps * sizeof(X)];
  X* const shared = reinterpret_cast<X*>(memory);
  for (int lane = 16; lane > 0; lane /= 2) join(x, from_lane(x, lane));
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  X total = shared[0];
  for (int warp = 1; warp < kWarps; ++warp) join(total, shared[warp]);
  __syncthreads();
  return total;
}

template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads) loss_rows_kernel(CinchLossRows in) {
  using Numbers = cinch::Pack<T, kCount>;
  const int64_t row = blockIdx.x, packs = in.vocabulary / kCount;
  Numbers* const student = reinterpret_cast<Numbers*>(static_cast<T*>(in.student) + row * in.vocabulary);
  const Numbers* const teacher =
      in.teacher != nullptr ? reinterpret_cast<const Numbers*>(static_cast<const T*>(in.teacher) + row * in.vocabulary)
                            : nullptr;
  const int64_t target = in.targets[row];
  const bool counts = target >= 0;
  if (!counts && !in.writes_gradient) {
    if (threadIdx.x == 0) in.cross_entropy[row] = in.distillation[row] = 0;
    return;
  }

  Normaliser of_student, of_teacher;
  for (int64_t i = threadIdx.x; counts && i < packs; i += kThreads) {
    const Numbers s = student[i];
    for (int j = 0; j < kCount; ++j) of_student.add(capped(wide(s.at[j]), in.softcap));
    if (teacher == nullptr) continue;
    const Numbers t = teacher[i];
    for (int j = 0; j < kCount; ++j) of_teacher.add(capped(wide(t.at[j]), in.softcap));
  }
  const float student_sum = counts ? over_block(of_student).log_sum() : 0;
  const float teacher_sum = counts && teacher != nullptr ? over_block(of_teacher).log_sum() : 0;
  // Read before anybody writes the gradient over it.
  const float aim =
      counts ? capped(wide(static_cast<const T*>(in.student)[row * in.vocabulary + target]), in.softcap) : 0;
  __syncthreads();

  const float ce = in.cross_entropy_weight, kd = teacher != nullptr ? in.distillation_weight : 0;
  float divergence = 0;
  for (int64_t i = threadIdx.x; i < packs; i += kThreads) {
    Numbers gradient;
    if (counts) {
      const Numbers s = student[i], t = teacher != nullptr ? teacher[i] : s;
      for (int j = 0; j < kCount; ++j) {
        const float z = capped(wide(s.at[j]), in.softcap), log_q = z - student_sum;
        float p = 0;
        if (teacher != nullptr) {
          const float log_p = capped(wide(t.at[j]), in.softcap) - teacher_sum;
          p = expf(log_p);
          divergence += p * (log_p - log_q);
        }
        float g = (ce + kd) * expf(log_q) - kd * p;
        if (i * kCount + j == target) g -= ce;
        if (in.softcap > 0) g *= 1 - (z / in.softcap) * (z / in.softcap);
        narrow(g, gradient.at[j]);
      }
    } else {
      for (int j = 0; j < kCount; ++j) narrow(0, gradient.at[j]);
    }
    if (in.writes_gradient) student[i] = gradient;
  }
  divergence = over_block(divergence);
  if (threadIdx.x != 0) return;
  in.cross_entropy[row] = counts ? student_sum - aim : 0;
  in.distillation[row] = divergence;
}

template <typename T>
void launch(const CinchLossRows& in, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(in.rows);
  if (cinch::in_packs<T>(in.vocabulary, in.student, in.teacher)) {
    loss_rows_kernel<T, cinch::kPackBytes / sizeof(T)><<<blocks, kThreads, 0, stream>>>(in);
  } else {
    loss_rows_kernel<T, 1><<<blocks, kThreads, 0, stream>>>(in);
  }
}

}  // namespace

extern "C" int32_t cinch_cuda_loss_rows(const CinchLossRows* rows, void* stream, char* error, uint64_t error_size) {
  return cinch::launch_for(rows->element, error, error_size, [&](auto number) {
    if (rows->rows > 0) launch<decltype(number)>(*rows, static_cast<cudaStream_t>(stream));
  });
}
