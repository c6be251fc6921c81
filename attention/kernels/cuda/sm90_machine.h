// The GPU as LatentDecodeBlock sees it: one PTX instruction per function, for sm_90a. What sm_80 has is warp.h's.
// Source: PTX ISA 9.0, the instruction of each asm statement.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "attention/kernels/cuda/sm90_layout.h"
#include "attention/kernels/cuda/sm90_wgmma.h"
#include "attention/kernels/warp/warp.h"

namespace cinch::sm90 {

#ifdef CINCH_WATCHDOG
/// In builds of tests a wait of seconds ends the kernel; host memory (6 numbers) for which thread and which barrier.
static __device__ volatile uint32_t* watchdog_report = nullptr;
static __device__ int watchdog_taken = 0;
#endif

class Gpu {
 public:
  using TensorMap = CUtensorMap;
  using Chunk = warp::Words4;  // 8 elements

  __device__ __forceinline__ int thread() const { return static_cast<int>(threadIdx.x); }
  /// The same number in a whole warp, and the compiler knows it.
  __device__ __forceinline__ int warpgroup() const {
    return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarpgroup, 0);
  }
  __device__ __forceinline__ int block_x() const { return static_cast<int>(blockIdx.x); }
  __device__ __forceinline__ int block_y() const { return static_cast<int>(blockIdx.y); }

  /// Dynamic shared memory. Where static one is declared beside it, it may not begin on a multiple of 1024.
  __device__ __forceinline__ static uint32_t shared_base() {
    extern __shared__ __align__(1024) uint8_t sm90_shared[];
    const auto base = static_cast<uint32_t>(__cvta_generic_to_shared(sm90_shared));
    if (base % kSwizzleAtomBytes != 0) __trap();
    return base;
  }

  /// Registers per thread from here on; all warps of a warpgroup.
  template <int kCount>
  __device__ __forceinline__ static void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
  }
  template <int kCount>
  __device__ __forceinline__ static void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
  }

  // ---- mbarrier

  __device__ __forceinline__ static void barrier_init(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
  }
  __device__ __forceinline__ static void fence_barrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    fence_async_proxy();
  }
  __device__ __forceinline__ static void barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
  }
  /// Arrives once and expects `bytes` more from TMA.
  __device__ __forceinline__ static void barrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
  }
  /// Until the phase of this parity is complete; parity 1 of a new barrier is.
  __device__ __forceinline__ static void barrier_wait(uint32_t barrier, uint32_t parity) {
    uint32_t done = 0;
#ifdef CINCH_WATCHDOG
    const long long start = clock64();
#endif
    while (true) {
      asm volatile(
          "{\n.reg .pred p;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
          "selp.u32 %0, 1, 0, p;\n}"
          : "=r"(done)
          : "r"(barrier), "r"(parity)
          : "memory");
      if (done != 0) return;
#ifdef CINCH_WATCHDOG
      if (clock64() - start > 20000000000LL) {
        if (watchdog_report != nullptr && atomicExch(&watchdog_taken, 1) == 0) {
          const uint32_t report[] = {1, blockIdx.x, blockIdx.y, threadIdx.x, barrier - shared_base(), parity};
          for (int i = 5; i >= 0; --i) watchdog_report[i] = report[i];
          __threadfence_system();
        }
        __nanosleep(100000000);
        __trap();
      }
#endif
    }
  }

  // ---- between kernels (programmatic dependent launch)

  /// Until all kernels before this one have ended and what they wrote is seen.
  __device__ __forceinline__ static void await_dependencies() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
  /// The next kernel may begin, as far as there is room, when all thread blocks have said this.
  __device__ __forceinline__ static void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;"); }

  // ---- order and other barriers

  /// Earlier ordinary accesses to shared memory come before later ones of TMA and wgmma.
  __device__ __forceinline__ static void fence_async_proxy() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __device__ __forceinline__ static void sync_block() { __syncthreads(); }
  __device__ __forceinline__ static void sync_warp() { __syncwarp(); }
  __device__ __forceinline__ static void sync_group(int barrier, int threads) { warp::sync_some(barrier, threads); }

  // ---- memory

  /// 64 columns x the map's rows, to `shared`, swizzled; completes on `barrier`. The cache is read once: it may leave
  /// L2 first.
  __device__ __forceinline__ static void load_box(uint32_t shared, const TensorMap* map, uint32_t barrier, int column,
                                                  int row, int block) {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(shared),
        "l"(map), "r"(column), "r"(row), "r"(block), "r"(barrier), "l"(policy)
        : "memory");
  }
  __device__ __forceinline__ static void store_shared(uint32_t address, Chunk v) { warp::shared_store(address, v); }
  __device__ __forceinline__ static void store_shared(uint32_t address, float a, float b) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(a), "f"(b) : "memory");
  }
  __device__ __forceinline__ static Chunk load_shared(uint32_t address) { return warp::shared_words4(address); }
  __device__ __forceinline__ static void load_shared(uint32_t address, float& a, float& b) {
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(a), "=f"(b) : "r"(address) : "memory");
  }
  __device__ __forceinline__ static Chunk chunk_of(const uint32_t* v) { return {v[0], v[1], v[2], v[3]}; }
  __device__ __forceinline__ static Chunk chunk_of(const float* v) {
    return {__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3])};
  }
  __device__ __forceinline__ static void take_chunk(Chunk chunk, uint32_t* v) {
    v[0] = chunk.x, v[1] = chunk.y, v[2] = chunk.z, v[3] = chunk.w;
  }
  __device__ __forceinline__ static void take_chunk(Chunk chunk, float* v) {
    v[0] = __uint_as_float(chunk.x), v[1] = __uint_as_float(chunk.y);
    v[2] = __uint_as_float(chunk.z), v[3] = __uint_as_float(chunk.w);
  }
  template <class T>
  __device__ __forceinline__ static void store_pair(uint16_t* to, float a, float b) {
    *reinterpret_cast<uint32_t*>(to) = pack<T>(a, b);
  }
  __device__ __forceinline__ static void store_pair(float* to, float a, float b) {
    *reinterpret_cast<float2*>(to) = make_float2(a, b);
  }

  // ---- between lanes

  __device__ __forceinline__ static int from_lane(int v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
  __device__ __forceinline__ static float from_lane(float v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
  __device__ __forceinline__ static float from_lane_xor(float v, int mask) { return warp::shuffle_xor(v, mask); }

  // ---- arithmetic

  __device__ __forceinline__ static float max(float a, float b) { return fmaxf(a, b); }
  __device__ __forceinline__ static float tanh(float x) { return tanhf(x); }
  __device__ __forceinline__ static float log2(float x) { return log2f(x); }
  __device__ __forceinline__ static float exp2(float x) { return warp::exp2_fast(x); }
  /// Two numbers as one register, `low` in the lower half.
  template <class T>
  __device__ __forceinline__ static uint32_t pack(float low, float high) {
    return warp::pack(T{}, low, high);
  }

  // ---- wgmma

  /// What was done to these registers comes before later multiplications.
  template <int kCount>
  __device__ __forceinline__ static void wgmma_fence(float (&d)[kCount]) {
    hold(d);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  }
  __device__ __forceinline__ static void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  }
  /// All of this warp's multiplications are done; d may be read.
  template <int kCount>
  __device__ __forceinline__ static void wgmma_wait(float (&d)[kCount]) {
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    hold(d);
  }
  /// d (64, N) = [d +] a (64, 16) b (N, 16)^T, both K-major in shared memory.
  template <class T, int kCount>
  __device__ __forceinline__ static void multiply_shared(float (&d)[kCount], uint64_t a, uint64_t b, bool add) {
    wgmma_shared(T{}, d, a, b, add);
  }
  /// d (64, N) += a (64, 16) b (16, N), a in registers, b MN-major in shared memory.
  template <class T, int kCount>
  __device__ __forceinline__ static void multiply_registers(float (&d)[kCount], const uint32_t* a, uint64_t b) {
    wgmma_registers(T{}, d, a, b);
  }

  /// The compiler moves no computation of these registers across.
  template <int kCount>
  __device__ __forceinline__ static void hold(float (&v)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(v[i])::"memory");
  }
  template <int kCount>
  __device__ __forceinline__ static void hold(uint32_t (&v)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(v[i])::"memory");
  }
};

}  // namespace cinch::sm90
