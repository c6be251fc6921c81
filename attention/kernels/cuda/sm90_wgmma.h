// wgmma.mma_async of m64nNk16 with fp32 accumulators, N by the number of accumulator registers (N / 2).
#pragma once

#include <cstdint>

#include "attention/kernels/warp/numbers.h"

namespace cinch::sm90 {

#define CINCH_R16(a) CINCH_R8(a), CINCH_R8(a + 8)
#define CINCH_R8(a) "+f"(d[a]), "+f"(d[a + 1]), "+f"(d[a + 2]), "+f"(d[a + 3]), CINCH_R4(a + 4)
#define CINCH_R4(a) "+f"(d[a]), "+f"(d[a + 1]), "+f"(d[a + 2]), "+f"(d[a + 3])
#define CINCH_R32(a) CINCH_R16(a), CINCH_R16(a + 16)

#define CINCH_N16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define CINCH_N32 CINCH_N16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define CINCH_N64                                                                                \
  CINCH_N32                                                                                      \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
  "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define CINCH_N96                                                                                \
  CINCH_N64                                                                                      \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, " \
  "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define CINCH_N128                                                                                 \
  CINCH_N96                                                                                        \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// d = [d +] a b^T, both from shared memory, K-major.
#define CINCH_WGMMA_SHARED(tag, type, n, numbers, registers, a_, b_, p_)                                       \
  __device__ __forceinline__ void wgmma_shared(tag, float(&d)[n / 2], uint64_t a, uint64_t b, bool add) {      \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " p_                                                        \
                 ", 0;\n"                                                                                      \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" numbers "}, " a_ ", " b_ \
                 ", p, 1, 1, 0, 0;\n}"                                                                         \
                 : registers                                                                                   \
                 : "l"(a), "l"(b), "r"(static_cast<int>(add))                                                  \
                 : "memory");                                                                                  \
  }

// d += a b, a from registers, b from shared memory, MN-major.
#define CINCH_WGMMA_REGISTERS(tag, type, n, numbers, registers, a_, b_)                                   \
  __device__ __forceinline__ void wgmma_registers(tag, float(&d)[n / 2], const uint32_t* a, uint64_t b) { \
    asm volatile(                                                                                         \
        "{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"                                                        \
        "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" numbers "}, {" a_ "}, " b_   \
        ", p, 1, 1, 1;\n}"                                                                                \
        : registers                                                                                       \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)                                              \
        : "memory");                                                                                      \
  }

#define CINCH_WGMMA(tag, type)                                                                                       \
  CINCH_WGMMA_SHARED(tag, type, 32, CINCH_N16, CINCH_R16(0), "%16", "%17", "%18")                                    \
  CINCH_WGMMA_SHARED(tag, type, 64, CINCH_N32, CINCH_R32(0), "%32", "%33", "%34")                                    \
  CINCH_WGMMA_REGISTERS(tag, type, 64, CINCH_N32, CINCH_R32(0), "%32, %33, %34, %35", "%36")                         \
  CINCH_WGMMA_REGISTERS(tag, type, 128, CINCH_N64, CINCH_R32(0) CINCH_COMMA CINCH_R32(32), "%64, %65, %66, %67",     \
                        "%68")                                                                                       \
  CINCH_WGMMA_REGISTERS(tag, type, 192, CINCH_N96, CINCH_R32(0) CINCH_COMMA CINCH_R32(32) CINCH_COMMA CINCH_R32(64), \
                        "%96, %97, %98, %99", "%100")                                                                \
  CINCH_WGMMA_REGISTERS(tag, type, 256, CINCH_N128,                                                                  \
                        CINCH_R32(0) CINCH_COMMA CINCH_R32(32) CINCH_COMMA CINCH_R32(64) CINCH_COMMA CINCH_R32(96),  \
                        "%128, %129, %130, %131", "%132")
#define CINCH_COMMA ,

CINCH_WGMMA(warp::Bf16, "bf16")
CINCH_WGMMA(warp::Fp16, "f16")

}  // namespace cinch::sm90
