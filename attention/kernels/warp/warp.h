// What a warp can do, in the words of the tile routines: the instructions of sm_80 where nvcc compiles this, the warp
// emulator elsewhere. A shared memory address is a byte offset in the shared window of the thread block; 16-byte
// accesses need multiples of 16.
//
// Fragments of mma.sync.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"), with r = lane / 4, c = 2 * (lane % 4):
//   a[0] A[r][c..c+1]  a[1] A[r+8][c..]  a[2] A[r][c+8..]  a[3] A[r+8][c+8..]
//   b[0] B[c..c+1][r]  b[1] B[c+8..][r]
//   d[0..1] D[r][c..c+1]  d[2..3] D[r+8][c..c+1]
#pragma once

#include <math.h>
#include <stdint.h>

#include "attention/kernels/warp/numbers.h"
#if !defined(__CUDACC__)
#include "attention/kernels/warp/warp_emulator.h"
#endif

namespace cinch::warp {

using Shared = uint32_t;

struct alignas(16) Words4 {
  uint32_t x, y, z, w;
};
struct alignas(8) Words2 {
  uint32_t x, y;
};

CINCH_HOST_DEVICE bool is_aligned(const void* address, uint32_t bytes) {
  return reinterpret_cast<uintptr_t>(address) % bytes == 0;
}

#if defined(__CUDACC__)

CINCH_DEVICE Shared shared_begin() {
  extern __shared__ __align__(16) unsigned char cinch_shared[];
  return static_cast<Shared>(__cvta_generic_to_shared(cinch_shared));
}
/// Four 8x8 matrices of 16-bit numbers; lane l gives the address of row l % 8 of matrix l / 8.
CINCH_DEVICE void load_matrices(uint32_t (&to)[4], Shared row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row)
               : "memory");
}
CINCH_DEVICE void load_matrices_transposed(uint32_t (&to)[4], Shared row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row)
               : "memory");
}
CINCH_DEVICE void multiply_add(Bf16, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
CINCH_DEVICE void multiply_add(Fp16, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
CINCH_DEVICE uint32_t pack(Bf16, float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
CINCH_DEVICE uint32_t pack(Fp16, float low, float high) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
CINCH_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
CINCH_DEVICE bool any(bool value) { return __any_sync(0xffffffffu, value) != 0; }

/// 16 bytes from global to shared memory in the background; zeros, and no access to `from`, unless `valid`.
CINCH_DEVICE void copy_async(Shared to, const void* from, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
CINCH_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
CINCH_DEVICE void copy_wait_for() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
CINCH_DEVICE void sync_block() { __syncthreads(); }
/// Joins `threads` threads of the block, whole warps; ids 1..15.
CINCH_DEVICE void sync_some(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

CINCH_DEVICE float shared_float(Shared from) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(from) : "memory");
  return value;
}
CINCH_DEVICE uint32_t shared_word(Shared from) {
  uint32_t value;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(from) : "memory");
  return value;
}
CINCH_DEVICE uint16_t shared_half(Shared from) {
  uint16_t value;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(value) : "r"(from) : "memory");
  return value;
}
CINCH_DEVICE Words2 shared_words2(Shared from) {
  Words2 v;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(from) : "memory");
  return v;
}
CINCH_DEVICE Words4 shared_words4(Shared from) {
  Words4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(from)
               : "memory");
  return v;
}
CINCH_DEVICE void shared_store(Shared to, float value) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(value) : "memory");
}
CINCH_DEVICE void shared_store(Shared to, uint16_t value) {
  asm volatile("st.shared.u16 [%0], %1;" ::"r"(to), "h"(value) : "memory");
}
CINCH_DEVICE void shared_store(Shared to, uint32_t value) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(value) : "memory");
}
CINCH_DEVICE void shared_store(Shared to, Words4 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

/// Several numbers in one access, which needs a multiple of sizeof(V).
template <class V>
CINCH_DEVICE V global_load(const void* from) {
  return *static_cast<const V*>(from);
}
template <class V>
CINCH_DEVICE void global_store(void* to, V value) {
  *static_cast<V*>(to) = value;
}

/// Of data that other thread blocks of the same launch have written: not through L1, which is not coherent.
CINCH_DEVICE float fresh_float(const float* from) { return __ldcg(from); }
CINCH_DEVICE void fresh_floats(const float* from, float (&to)[4]) {
  const float4 v = __ldcg(reinterpret_cast<const float4*>(from));
  to[0] = v.x;
  to[1] = v.y;
  to[2] = v.z;
  to[3] = v.w;
}

/// The same number, which the compiler cannot keep what it computes of in registers over a loop.
CINCH_DEVICE int recomputed(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

CINCH_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

#else

inline Shared shared_begin() { return 0; }
inline void load_matrices(uint32_t (&to)[4], Shared row) { emulator::load_matrices(to, row, false); }
inline void load_matrices_transposed(uint32_t (&to)[4], Shared row) { emulator::load_matrices(to, row, true); }
template <class T>
void multiply_add(T, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::multiply_add(d, a, b0, b1, T::to_float);
}
template <class T>
uint32_t pack(T, float low, float high) {
  return T::from_float(low) | static_cast<uint32_t>(T::from_float(high)) << 16;
}
inline float shuffle_xor(float value, int mask) { return emulator::shuffle(value, emulator::lane() ^ mask); }
inline bool any(bool value) { return emulator::any(value); }
inline void copy_async(Shared to, const void* from, bool valid) { emulator::copy_async(to, from, valid); }
inline void copy_commit() { emulator::copy_commit(); }
template <int kPending>
void copy_wait_for() {
  emulator::copy_wait(kPending);
}
inline void sync_block() { emulator::sync(0, emulator::threads()); }
inline void sync_some(int id, int threads) { emulator::sync(id, threads); }
inline float shared_float(Shared from) { return emulator::shared<float>(from); }
inline uint32_t shared_word(Shared from) { return emulator::shared<uint32_t>(from); }
inline uint16_t shared_half(Shared from) { return emulator::shared<uint16_t>(from); }
inline Words2 shared_words2(Shared from) { return emulator::shared<Words2>(from); }
inline Words4 shared_words4(Shared from) { return emulator::shared<Words4>(from); }
template <class V>
void shared_store(Shared to, V value) {
  emulator::shared<V>(to) = value;
}
inline float fresh_float(const float* from) { return *from; }
template <class V>
V global_load(const void* from) {
  V value;
  memcpy(&value, emulator::checked(from, sizeof value), sizeof value);
  return value;
}
template <class V>
void global_store(void* to, V value) {
  emulator::checked(to, sizeof value);
  memcpy(to, &value, sizeof value);
}
inline void fresh_floats(const float* from, float (&to)[4]) { memcpy(to, from, sizeof to); }
inline int recomputed(int value) { return value; }
inline float exp2_fast(float x) { return exp2f(x); }

#endif

/// Waits until at most `pending` of this thread's latest groups of copies are under way, or a few less: the instruction
/// wants a constant. kMaxPending is the largest that makes a difference.
constexpr int kMaxPending = 12;
CINCH_DEVICE void copy_wait(int pending) {
  if (pending >= kMaxPending) return copy_wait_for<kMaxPending>();
  if (pending >= 8) return copy_wait_for<8>();
  if (pending >= 6) return copy_wait_for<6>();
  if (pending >= 4) return copy_wait_for<4>();
  if (pending == 3) return copy_wait_for<3>();
  if (pending == 2) return copy_wait_for<2>();
  if (pending == 1) return copy_wait_for<1>();
  copy_wait_for<0>();
}

}  // namespace cinch::warp
