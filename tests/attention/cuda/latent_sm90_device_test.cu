// Checks and times the sm_90 latent decode on a GPU of compute capability 9.0. No LibTorch, no driver library: copy the
// program to a machine with the GPU and run it.
//   latent_sm90_device_test           each hardware assumption by itself, then the grid against fp64
//   latent_sm90_device_test --tiny    few and small shapes, for compute-sanitizer
//   latent_sm90_device_test --bench   times, beside the copy bandwidth of the same run
#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

// The kernel itself, compiled so that a wait that never ends is reported.
#define CINCH_WATCHDOG
#include "attention/kernels/cuda/latent_decode_sm90.cu"
#include "attention/kernels/decode/decode_launch.h"
#include "tests/attention/decode_grid.h"

namespace cinch::sm90 {
namespace {

using decode::Bf16;
using decode::DecodeJob;
using decode::Fp16;

volatile uint32_t* watchdog = nullptr;  // what a stuck kernel says

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::printf("FAILED %s: %s\n", what, cudaGetErrorString(status));
  if (watchdog != nullptr && watchdog[0] != 0) {
    std::printf("    block %u.%u thread %u waits for parity %u of the barrier at +%u\n", watchdog[1], watchdog[2],
                watchdog[3], watchdog[5], watchdog[4]);
  }
  std::exit(2);
}

/// Memory on the device, of one type.
template <class V>
class Device {
 public:
  explicit Device(size_t count) : count_(count) {
    check(cudaMalloc(&data_, std::max<size_t>(count, 1) * sizeof(V)), "cudaMalloc");
  }
  explicit Device(const std::vector<V>& host) : Device(host.size()) {
    check(cudaMemcpy(data_, host.data(), count_ * sizeof(V), cudaMemcpyHostToDevice), "copy to the device");
  }
  Device(const Device&) = delete;
  ~Device() { cudaFree(data_); }
  V* get() const { return data_; }
  size_t count() const { return count_; }
  std::vector<V> host() const {
    std::vector<V> values(count_);
    check(cudaMemcpy(values.data(), data_, count_ * sizeof(V), cudaMemcpyDeviceToHost), "copy from the device");
    return values;
  }

 private:
  V* data_ = nullptr;
  size_t count_;
};

int failures = 0;

void report(bool good, const std::string& what) {
  std::printf("%s %s\n", good ? "ok    " : "FAILED", what.c_str());
  if (!good) ++failures;
  std::fflush(stdout);
}

// ---- what the kernel relies on, one thing at a time

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

// ---- the kernel

int multiprocessors = 0;
size_t l2_bytes = 0;

/// A job for a step whose sizes are known; owns plan and scratch.
class Job {
 public:
  /// parts 0: the kernel's own choice.
  Job(const CinchDecodeStep& step, const int32_t* lengths, int parts) {
    char error[256] = "";
    const decode::Multiprocessor processor{multiprocessors, 233472, kSharedLimit};
    decode::TilingWish wish;
    wish.parts = parts;
    const char* missing = decode::sm90_missing(step, 9, 0);
    if (missing != nullptr ||
        !(parts > 0 ? decode::choose_tiling(step, processor, wish, job.tiling, error, sizeof error)
                    : decode::choose_sm90_tiling(step, processor, job.tiling, error, sizeof error))) {
      std::printf("FAILED refused: %s\n", missing != nullptr ? missing : error);
      std::exit(2);
    }
    job.step = step;
    job.scratch = decode::scratch_layout(step, job.tiling.parts, job.tiling.value_columns);
    const size_t plan_words = decode::SplitPlan::bytes(job.tiling.parts, step.batch) / 4;
    check(cudaMalloc(&job.step.scratch, job.scratch.bytes), "scratch");
    check(cudaMemset(job.step.scratch, 0xff, job.scratch.bytes), "scratch");
    check(cudaMalloc(&plan_, plan_words * 4), "plan");
    job.step.plan = plan_;
    check(static_cast<cudaError_t>(
              decode::launch_plan(plan_, job.tiling.parts, lengths, step.batch, step.window, nullptr)),
          "plan");
    check(cudaDeviceSynchronize(), "plan");
  }
  Job(const Job&) = delete;
  ~Job() {
    cudaFree(job.step.scratch);
    cudaFree(plan_);
  }
  DecodeJob job{};

 private:
  int32_t* plan_ = nullptr;
};

void run_job(DecodeJob job, int phases, cudaStream_t stream, decode::Sm90Wish wish = {}) {
  job.phases = phases;
  check(static_cast<cudaError_t>(decode::launch_latent_sm90(job, stream, wish)), "launch");
}

using decode::DecodeCase;

struct Prepared {
  decode::DecodeArrays arrays;
  decode::ReferenceResult expected;
};

/// Arrays and references of all cases, on all cores.
std::vector<Prepared> prepare(const std::vector<DecodeCase>& cases) {
  std::vector<Prepared> prepared(cases.size());
  std::atomic<size_t> next{0};
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < std::thread::hardware_concurrency(); ++i) {
    threads.emplace_back([&] {
      for (size_t at = next++; at < cases.size(); at = next++) {
        prepared[at].arrays = decode::CaseBuilder(cases[at], static_cast<uint32_t>(at + 1)).build();
        prepared[at].arrays.point();
        prepared[at].expected = decode::reference_decode(prepared[at].arrays.step);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return prepared;
}

/// Which heads, columns and sequences are wrong, and the first wrong numbers.
std::string faults(const decode::DecodeArrays& arrays, const decode::ReferenceResult& expected) {
  const CinchDecodeStep& s = arrays.step;
  const int width = decode::out_width(s);
  std::vector<int> by_head(static_cast<size_t>(s.n_heads)), by_columns(static_cast<size_t>(divided_up(width, 64)));
  std::vector<int> by_sequence(static_cast<size_t>(s.batch));
  std::string text;
  int wrong = 0, wrong_lse = 0;
  for (int b = 0; b < s.batch; ++b) {
    for (int h = 0; h < s.n_heads; ++h) {
      const auto row = static_cast<size_t>(b * s.n_heads + h);
      for (int i = 0; i < width; ++i) {
        const uint16_t bits = arrays.out[static_cast<size_t>(b * s.out_batch_stride + h * s.out_head_stride + i)];
        const double got = s.type == CINCH_DECODE_BF16 ? Bf16::to_float(bits) : Fp16::to_float(bits);
        const double want = expected.out[row * static_cast<size_t>(width) + static_cast<size_t>(i)];
        if (std::fabs(got - want) < 0.02 + 0.02 * std::fabs(want)) continue;
        ++by_head[static_cast<size_t>(h)], ++by_columns[static_cast<size_t>(i / 64)],
            ++by_sequence[static_cast<size_t>(b)];
        if (++wrong > 6) continue;
        text += "\n    sequence " + std::to_string(b) + " head " + std::to_string(h) + " column " + std::to_string(i) +
                ": got " + std::to_string(got) + " want " + std::to_string(want);
      }
      const double got = static_cast<double>(arrays.lse[row]), want = expected.lse[row];
      if (got == want || std::fabs(got - want) < 1e-4 * std::max(1.0, std::fabs(want))) continue;
      if (++wrong_lse <= 4) {
        text += "\n    lse of sequence " + std::to_string(b) + " head " + std::to_string(h) + ": got " +
                std::to_string(got) + " want " + std::to_string(want);
      }
    }
  }
  text += "\n    wrong numbers: " + std::to_string(wrong) + ", lse: " + std::to_string(wrong_lse) + "; by head:";
  for (const int n : by_head) text += " " + std::to_string(n);
  text += "; by 64 columns:";
  for (const int n : by_columns) text += " " + std::to_string(n);
  text += "; by sequence:";
  for (const int n : by_sequence) text += " " + std::to_string(n);
  return text;
}

/// Runs a case `repeats` times and compares; all runs must agree bit for bit. parts 0: one per multiprocessor.
bool run_case(const DecodeCase& c, Prepared& prepared, int parts, int repeats, bool quiet, decode::Sm90Wish wish = {}) {
  decode::DecodeArrays& arrays = prepared.arrays;
  const Device<uint16_t> q(arrays.q), keys(arrays.keys), map(arrays.value_map), bias(arrays.value_bias);
  const Device<int32_t> table(arrays.table), lengths(arrays.lengths);
  const Device<float> lse(arrays.lse.size());
  CinchDecodeStep step = arrays.step;
  step.q = q.get();
  step.keys.data = keys.get();
  step.value_map = map.get();
  if (step.value_bias != nullptr) step.value_bias = bias.get();
  if (step.block_table != nullptr) step.block_table = table.get();
  step.lengths = lengths.get();
  step.lse = lse.get();
  Job work(step, lengths.get(), parts);
  const std::vector<uint16_t> poison = arrays.out;
  std::vector<uint16_t> first;
  int changed = 0;
  for (int i = 0; i < repeats; ++i) {
    const Device<uint16_t> out(poison);
    work.job.step.out = out.get();
    run_job(work.job, decode::kStream | decode::kCombine, nullptr, wish);
    check(cudaDeviceSynchronize(), name_of(c).c_str());
    arrays.out = out.host();
    if (i == 0) first = arrays.out;
    changed += first == arrays.out ? 0 : 1;
  }
  arrays.lse = lse.host();
  const decode::DecodeErrors errors = compare(arrays, prepared.expected);
  const bool good = errors.good() && changed == 0;
  if (!good || !quiet) {
    report(good, name_of(c) + ", parts " + std::to_string(work.job.tiling.parts) + ": " + errors.text() +
                     (changed > 0 ? ", " + std::to_string(changed) + " runs differ" : "") +
                     (good ? "" : faults(arrays, prepared.expected)));
  }
  arrays.out = poison;
  return good;
}

/// A failing shape again with few tokens and one part: where does it begin to fail?
void narrow_down(DecodeCase c) {
  c.window = 0;
  for (const int length : {1, 16, 63, 64, 65, 128, 129, 192, 257}) {
    c.lengths = {length};
    std::vector<Prepared> prepared = prepare({c});
    if (!run_case(c, prepared[0], 1, 1, false)) break;
  }
}

std::vector<DecodeCase> grid(bool tiny) {
  std::vector<DecodeCase> cases;
  const auto add = [&](int rank, int rope, int heads, const std::vector<int32_t>& lengths) -> DecodeCase& {
    cases.push_back(decode::latent_case(rank, rope, heads, lengths));
    cases.back().type = cases.size() % 3 == 0 ? CINCH_DECODE_FP16 : CINCH_DECODE_BF16;
    return cases.back();
  };
  const std::vector<int> ranks =
      tiny ? std::vector<int>{72, 256, 320, 512}
           : std::vector<int>{16, 56, 64, 72, 96, 128, 136, 192, 200, 256, 264, 320, 384, 392, 448, 504, 512};
  for (const int rank : ranks) {
    for (const int heads : tiny ? std::vector<int>{9} : std::vector<int>{1, 9, 16, 64}) {
      add(rank, 64, heads, {1, 64, 200, 0, 517});
    }
    if (!tiny) {
      add(rank, 8, 28, {65, 1000});
      add(rank, 64, 100, {300, 64});
      add(rank, 40, 12, {700, 33, 20}).window = 100;
    }
    add(rank, 128, 32, {127, 640, 3}).paged = false;
    add(rank, 64, 7, {300, 30}).softcap = 5;
    add(rank, 16, 8, {400}).spread = 20;
    DecodeCase& mapped = add(rank, 32, 12, {330, 10, 0});
    mapped.v_head_dim = 72;
    mapped.value_bias = true;
  }
  if (!tiny) {
    add(512, 64, 128, {1, 300});
    add(512, 64, 16, {20000});
    add(192, 32, 16, {20000}).window = 5000;
    std::vector<int32_t> many(300);
    for (size_t i = 0; i < many.size(); ++i) many[i] = static_cast<int32_t>(i * 37 % 150);
    add(128, 64, 16, many);
    add(448, 64, 16, many);
  }
  return cases;
}

void check_grid(bool tiny) {
  const std::vector<DecodeCase> cases = grid(tiny);
  std::vector<Prepared> prepared = prepare(cases);
  int wrong = 0, right = 0;
  for (size_t i = 0; i < cases.size() && wrong < 8; ++i) {
    for (const int tokens : {0, 32}) {  // with 32: few parts, several sequences each
      if (run_case(cases[i], prepared[i], tokens == 0 ? 0 : 5, tiny ? 2 : 4, true, {tokens})) {
        ++right;
        continue;
      }
      if (++wrong <= 3 && !tiny) narrow_down(cases[i]);
    }
  }
  report(wrong == 0, std::to_string(right) + " runs right, " + std::to_string(wrong) + " wrong" +
                         (wrong >= 8 ? " (stopped there)" : ""));
  if (tiny) return;
  for (const int rank : {64, 128, 256, 320, 512}) {  // a race shows as a changed bit
    const DecodeCase c = decode::latent_case(rank, 64, 16, {3000, 100, 2000});
    std::vector<Prepared> one = prepare({c});
    run_case(c, one[0], 0, 100, false);
  }
}

// ---- times

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
                 decode::Sm90Wish wish = {}, int parts = 0) {
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
            run_job(one, combine == 1 ? decode::kStream | decode::kCombine : decode::kStream, stream, wish);
          }
        },
        rotations, 7);
  }
  const double bytes = static_cast<double>(bytes_cache) + 2.0 * shape.batch * heads * (width + rank);
  const double rate = bytes / us[1] * 1e-3, alone = bytes / us[0] * 1e-3;
  std::printf("%4d %4d %4d %5d %7d %4d %9.2f %8.0f %6.1f%% %9.2f %8.0f %6.1f%% %d parts%s\n", rank, rope, heads,
              shape.batch, shape.context, rotations, us[1], rate, 100 * rate / copy, us[0], alone, 100 * alone / copy,
              work.job.tiling.parts, wish.tile_tokens == 32 ? "  32-token tiles" : "");
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
    for (const int heads : {9, 16, 32, 64}) {
      for (const Shape shape : {Shape{64, 8192}, Shape{16, 32768}, Shape{1, 32768}}) {
        bench_shape(rank, 64, heads, shape, pool, copy);
        if (rank > 256 && heads == 16) bench_shape(rank, 64, heads, shape, pool, copy, {32});
        if (shape.batch > 1 && heads >= 32) bench_shape(rank, 64, heads, shape, pool, copy, {}, multiprocessors);
      }
    }
  }
  std::printf("copy again: %.0f GB/s\n", copy_bandwidth(pool));
}

int run(int argc, char** argv) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no GPU\n");
    return 77;
  }
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0), "device properties");
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  multiprocessors = properties.multiProcessorCount;
  l2_bytes = static_cast<size_t>(properties.l2CacheSize);
  std::printf("%s, sm_%d%d, %d multiprocessors, %d MiB L2, driver %d, runtime %d\n", properties.name, properties.major,
              properties.minor, multiprocessors, properties.l2CacheSize >> 20, driver, runtime);
  if (properties.major != 9 || properties.minor != 0) {
    std::printf("skipped: needs sm_90a\n");
    return 77;
  }
  uint32_t* report = nullptr;
  check(cudaHostAlloc(&report, 6 * sizeof(uint32_t), cudaHostAllocMapped), "mapped memory");
  std::memset(report, 0, 6 * sizeof(uint32_t));
  check(static_cast<cudaError_t>(decode::watch_latent_sm90(report)), "watchdog");
  watchdog = report;
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode == "--bench") {
    bench(argc > 2 ? std::atoi(argv[2]) : 0);
  } else {
    check_assumptions();
    check_grid(mode == "--tiny");
  }
  std::printf("%s\n", failures == 0 ? "all right" : "FAILURES");
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace cinch::sm90

int main(int argc, char** argv) { return cinch::sm90::run(argc, argv); }
