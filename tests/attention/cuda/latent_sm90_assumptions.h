// What the sm_90 latent decode relies on, one thing at a time: boxes of TMA, and products of wgmma whose every element
// says where it came from.
#pragma once

#include <functional>

#include "tests/attention/cuda/latent_sm90_program.h"

namespace cinch::sm90 {
namespace {

CUtensorMap encode(void* data, const uint64_t (&size)[3], const uint64_t (&strides)[2], uint32_t rows) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
        "cuTensorMapEncodeTiled");
  const cuuint64_t dims[3] = {size[0], size[1], size[2]}, pitch[2] = {strides[0], strides[1]};
  const cuuint32_t box[3] = {64, rows, 1}, steps[3] = {1, 1, 1};
  CUtensorMap map;
  const CUresult result = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function)(
      &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, data, dims, pitch, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    std::printf("FAILED cuTensorMapEncodeTiled: %d\n", static_cast<int>(result));
    std::exit(2);
  }
  return map;
}

/// One box to shared memory and out again as it lies there.
__global__ void box_kernel(const __grid_constant__ CUtensorMap map, int rows, int column, int row, int block,
                           uint16_t* out) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  Gpu gpu;
  const uint32_t base = gpu.shared_base(), barrier = base + 8192;
  if (threadIdx.x == 0) {
    gpu.barrier_init(barrier, 1);
    gpu.fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    gpu.barrier_expect(barrier, rows * 128);
    gpu.load_box(base, &map, barrier, column, row, block);
  }
  gpu.barrier_wait(barrier, 0);
  for (int i = threadIdx.x; i < rows * 64; i += blockDim.x) {
    uint16_t v;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(base + i * 2));
    out[i] = v;
  }
#endif
}

void check_box(int width, int rows, int column, int row, int block) {
  const int kRows = 64, kBlocks = 4, pitch = width + 16;
  std::vector<uint16_t> cache(static_cast<size_t>(kBlocks * kRows * pitch), 0x7fff);
  const auto id = [&](int b, int r, int c) { return static_cast<uint16_t>(b * 16384 + r * 200 + c + 1); };
  for (int b = 0; b < kBlocks; ++b) {
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < width; ++c) cache[static_cast<size_t>((b * kRows + r) * pitch + c)] = id(b, r, c);
    }
  }
  const Device<uint16_t> device(cache), out(static_cast<size_t>(rows * 64));
  const CUtensorMap map =
      encode(device.get(), {static_cast<uint64_t>(width), kRows, uint64_t{1} << 31},
             {static_cast<uint64_t>(pitch * 2), static_cast<uint64_t>(kRows * pitch * 2)}, static_cast<uint32_t>(rows));
  box_kernel<<<1, 128, 8192 + 64>>>(map, rows, column, row, block, out.get());
  check(cudaDeviceSynchronize(), "box_kernel");
  const std::vector<uint16_t> got = out.host();
  std::string text = "TMA box of " + std::to_string(rows) + " rows from (" + std::to_string(block) + ", " +
                     std::to_string(row) + ", " + std::to_string(column) + ") of width " + std::to_string(width);
  int wrong = 0;
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < 64; ++c) {
      const uint16_t want = column + c < width && row + r < kRows ? id(block, row + r, column + c) : uint16_t{0};
      const uint16_t seen = got[tile_offset(rows, r, c) / 2];
      if (seen == want) continue;
      if (++wrong <= 6) {
        const int key = seen - 1 - block * 16384;
        text += "\n    row " + std::to_string(r) + " column " + std::to_string(c) + ": got " + std::to_string(seen) +
                " (row " + std::to_string(key / 200) + " column " + std::to_string(key % 200) + "), want " +
                std::to_string(want);
      }
    }
  }
  report(wrong == 0, text + (wrong > 0 ? "\n    wrong: " + std::to_string(wrong) : ""));
}

/// Stores (rows, 64 * blocks) bf16 as the kernel's tiles lie.
__device__ void fill_tile(uint32_t tile, int rows, int columns, const uint16_t* from) {
  for (int i = threadIdx.x; i < rows * columns; i += blockDim.x) {
    const uint32_t address = tile + tile_offset(rows, i / columns, i % columns);
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(address), "h"(from[i]) : "memory");
  }
}

/// d (64, n) = a (64, 64 * blocks) b (n, 64 * blocks)^T over `steps` steps of 16.
template <int kN>
__global__ void shared_product_kernel(const uint16_t* a, const uint16_t* b, int columns, int steps, float* d) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  Gpu gpu;
  const uint32_t at = gpu.shared_base(), bt = at + 64 * columns * 2;
  fill_tile(at, 64, columns, a);
  fill_tile(bt, kN, columns, b);
  gpu.fence_async_proxy();
  __syncthreads();
  float acc[kN / 2];
  gpu.wgmma_fence(acc);
  for (int k = 0; k < steps; ++k) {
    gpu.template multiply_shared<Bf16>(acc, row_operand(at, 64, k), row_operand(bt, kN, k), k > 0);
  }
  gpu.wgmma_commit();
  gpu.wgmma_wait(acc);
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) d[fragment_row(threadIdx.x, i) * kN + fragment_column(threadIdx.x, i)] = acc[i];
#endif
}

/// d (64, kN) = a (64, rows) b (rows, columns) from column `first` on; a from registers.
template <int kN, int kRows>
__global__ void register_product_kernel(const uint16_t* a, const uint16_t* b, int columns, int first, float* d) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  Gpu gpu;
  const uint32_t bt = gpu.shared_base();
  fill_tile(bt, kRows, columns, b);
  gpu.fence_async_proxy();
  __syncthreads();
  uint32_t fragment[kRows / 4];
#pragma unroll
  for (int i = 0; i < kRows / 4; ++i) {
    const uint16_t* row = a + fragment_row(threadIdx.x, 2 * i) * kRows + fragment_column(threadIdx.x, 2 * i);
    fragment[i] = row[0] | static_cast<uint32_t>(row[1]) << 16;
  }
  float acc[kN / 2];
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) acc[i] = 0;
  gpu.hold(fragment);
  gpu.wgmma_fence(acc);
#pragma unroll
  for (int k = 0; k < kRows / 16; ++k) {
    gpu.template multiply_registers<Bf16>(acc, &fragment[4 * k], column_operand(bt, kRows, first, k));
  }
  gpu.wgmma_commit();
  gpu.wgmma_wait(acc);
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) d[fragment_row(threadIdx.x, i) * kN + fragment_column(threadIdx.x, i)] = acc[i];
#endif
}

std::vector<uint16_t> bf16(const std::vector<int>& v) {
  std::vector<uint16_t> out(v.size());
  for (size_t i = 0; i < v.size(); ++i) out[i] = Bf16::from_float(static_cast<float>(v[i]));
  return out;
}

/// Products whose every element shows where it came from: a picks one k per row, b holds first its row, then its
/// column.
void check_product(const std::string& name, int n, int depth, bool b_by_row,
                   const std::function<void(const Device<uint16_t>&, const Device<uint16_t>&, Device<float>&)>& run,
                   int columns, int first) {
  std::string text = name;
  int wrong = 0;
  const int b_rows = b_by_row ? n : depth, b_columns = columns;
  for (int offset = 0; offset < depth; offset += 64) {  // row m picks k = offset + m
    std::vector<int> a(static_cast<size_t>(64 * depth), 0);
    for (int m = 0; m < 64 && offset + m < depth; ++m) a[static_cast<size_t>(m * depth + offset + m)] = 1;
    for (int pass = 0; pass < 2; ++pass) {
      std::vector<int> b(static_cast<size_t>(b_rows * b_columns));
      for (int r = 0; r < b_rows; ++r) {
        // Columns beyond 256 are not exact in bf16: their number within 256, and 256 for the rest of the pattern.
        for (int c = 0; c < b_columns; ++c) b[static_cast<size_t>(r * b_columns + c)] = pass == 0 ? r : c % 256;
      }
      const Device<uint16_t> da(bf16(a)), db(bf16(b));
      Device<float> dd(static_cast<size_t>(64 * n));
      run(da, db, dd);
      check(cudaDeviceSynchronize(), name.c_str());
      const std::vector<float> d = dd.host();
      for (int m = 0; m < 64 && offset + m < depth; ++m) {
        for (int j = 0; j < n; ++j) {
          const int row = b_by_row ? j : offset + m, column = b_by_row ? offset + m : first + j;
          const float want = static_cast<float>(pass == 0 ? row : column % 256),
                      got = d[static_cast<size_t>(m * n + j)];
          if (got == want) continue;
          if (++wrong <= 12) {
            text += "\n    k " + std::to_string(offset + m) + " n " + std::to_string(j) + ": " +
                    (pass == 0 ? "row " : "column ") + "got " + std::to_string(got) + " want " + std::to_string(want);
          }
        }
      }
    }
  }
  report(wrong == 0, text + (wrong > 0 ? "\n    wrong: " + std::to_string(wrong) : ""));
}

template <int kN>
void check_shared_product(int columns) {
  const auto kernel = shared_product_kernel<kN>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 200 * 1024), "shared memory");
  check_product(
      "wgmma n" + std::to_string(kN) + ", both K-major from shared memory, K " + std::to_string(columns), kN, columns,
      true,
      [&](const Device<uint16_t>& a, const Device<uint16_t>& b, Device<float>& d) {
        kernel<<<1, 128, (64 + kN) * columns * 2>>>(a.get(), b.get(), columns, columns / 16, d.get());
      },
      columns, 0);
}

template <int kN, int kRows>
void check_register_product(int columns, int first) {
  const auto kernel = register_product_kernel<kN, kRows>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 200 * 1024), "shared memory");
  check_product(
      "wgmma n" + std::to_string(kN) + ", A from registers, B MN-major, " + std::to_string(kRows) + " rows, columns " +
          std::to_string(first) + ".. of " + std::to_string(columns),
      kN, kRows, false,
      [&](const Device<uint16_t>& a, const Device<uint16_t>& b, Device<float>& d) {
        kernel<<<1, 128, kRows * columns * 2>>>(a.get(), b.get(), columns, first, d.get());
      },
      columns, first);
}

void check_assumptions() {
  check_box(128, 64, 0, 0, 0);
  check_box(128, 64, 64, 0, 3);
  check_box(136, 64, 128, 0, 2);  // 56 columns beyond the end
  check_box(136, 32, 64, 32, 1);
  check_box(24, 64, 0, 0, 1);
  check_box(128, 64, 0, 40, 1);  // 40 rows beyond the end
  check_shared_product<64>(64);
  check_shared_product<64>(192);
  check_shared_product<32>(128);
  check_register_product<64, 64>(64, 0);
  check_register_product<128, 64>(192, 64);
  check_register_product<192, 64>(384, 192);
  check_register_product<256, 64>(512, 256);
  check_register_product<256, 32>(512, 256);
}

}  // namespace
}  // namespace cinch::sm90
