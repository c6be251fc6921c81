// Times of the decode kernels: medians of replays of CUDA graphs, over inputs that are rotated so that a replay touches
// more than three times the L2 cache; all launches included (the split plan, once per step for all layers, is timed
// apart). Bytes are what must be read and written once: visible cache rows, queries, results, value maps. Shares are of
// what a plain copy reaches in the same run, read and written bytes together.
//   --bench            the cases of docs/kernels.md, Targets
//   --bench grouped|latent|packed|small|plan|latency|tune ...    some of them; packed: latents of fewer bits than 16
//                                       beside 16; latency takes short steps apart, tune tries other tilings
//   --bench ... [--json FILE --commit COMMIT]    also writes a line per time (bench/results/README.md)
#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>

#include "attention/kernels/cuda/border.h"
#include "attention/kernels/decode/reference.h"
#include "tests/attention/cuda/bench_lines.h"
#include "tests/attention/cuda/device_program.h"
#include "tests/attention/cuda/median_time.h"

namespace cinch::decode {
namespace {

constexpr uint64_t kPool = uint64_t{20} << 30;  // random 16-bit numbers that all inputs are parts of

__global__ void fill_kernel(uint32_t* words, uint64_t count) {
  for (uint64_t i = blockIdx.x * uint64_t{blockDim.x} + threadIdx.x; i < count; i += uint64_t{gridDim.x} * blockDim.x) {
    uint32_t hash = static_cast<uint32_t>(i * 2654435761u) ^ static_cast<uint32_t>(i >> 13);
    hash = (hash ^ (hash >> 15)) * 0x85ebca6bu;
    hash ^= hash >> 13;
    // Two bfloat16 numbers of either sign in 2^-3 .. 2^1: valid as fp16 too.
    words[i] = (hash & 0x80ff80ffu) | 0x3e003e00u;
  }
}
__global__ void copy_kernel(const uint4* __restrict__ from, uint4* __restrict__ to, uint64_t count) {
  const uint64_t stride = uint64_t{gridDim.x} * blockDim.x;
  for (uint64_t i = blockIdx.x * uint64_t{blockDim.x} + threadIdx.x; i < count; i += stride) to[i] = from[i];
}
__global__ void read_kernel(const uint4* __restrict__ from, uint32_t* __restrict__ to, uint64_t count) {
  const uint64_t stride = uint64_t{gridDim.x} * blockDim.x;
  uint32_t sum = 0;
  for (uint64_t i = blockIdx.x * uint64_t{blockDim.x} + threadIdx.x; i < count; i += stride) {
    const uint4 v = from[i];
    sum += v.x ^ v.y ^ v.z ^ v.w;
  }
  if (sum == 0x12345678u) *to = sum;
}

struct Shape {
  int kind = CINCH_DECODE_LATENT;
  int batch = 1, length = 1024;
  int n_heads = 16, n_kv_heads = 1;
  int head_dim = 0, rank = 0, rope = 0, v_head_dim = 0;
  bool ragged = false;  // lengths between a half and three halves of `length`
  int cache_format = CINCH_CACHE_16BIT;
};

const char* format_name(int format) {
  constexpr const char* kNames[] = {"16 bit", "int8", "fp8", "int4"};
  return kNames[format];
}

class Bench {
 public:
  Bench() : pool_(pool_bytes()) {
    fill_kernel<<<4096, 256>>>(pool_.as<uint32_t>(), pool_.bytes() / 4);
    CINCH_CHECK(cudaDeviceSynchronize());
    int device = 0, l2 = 0;
    CINCH_CHECK(cudaGetDevice(&device));
    CINCH_CHECK(cudaDeviceGetAttribute(&l2, cudaDevAttrL2CacheSize, device));
    rotation_bytes_ = 3 * static_cast<uint64_t>(l2);
    CINCH_CHECK(border::current_multiprocessor(processor_));
    measure_copy();
  }

  double copy_rate() const { return copy_; }
  BenchLines lines;
  /// What a step must read of the cache.
  static int64_t cache_bytes(const Shape& shape) {
    const std::vector<int32_t> lengths = lengths_of(shape);
    const bool latent = shape.kind == CINCH_DECODE_LATENT;
    if (shape.cache_format != CINCH_CACHE_16BIT) {
      int64_t bytes = 0;
      for (const int32_t length : lengths) bytes += packed_bytes(shape, length);
      return bytes;
    }
    const int64_t row = latent ? shape.rank + shape.rope : 2 * int64_t{shape.n_kv_heads} * shape.head_dim;
    return std::accumulate(lengths.begin(), lengths.end(), int64_t{0}) * row * 2;
  }
  /// Codes with their scales and zeros; the open page in 16 bits.
  static int64_t packed_bytes(const Shape& shape, int64_t length) {
    const int64_t columns = shape.rank + shape.rope;
    if (shape.cache_format != CINCH_CACHE_INT4) return length * (columns + 4);
    const int64_t full = length / kBlockTokens;
    return full * (kBlockTokens * columns / 2 + 4 * columns) + length % kBlockTokens * columns * 2;
  }
  const Multiprocessor& processor() const { return processor_; }

  /// Microseconds per step; `bytes` is what it must move. 0 where no kernel covers it.
  double time(const Shape& shape, const TilingWish& wish, const std::vector<int>& launches, uint64_t& bytes,
              Tiling& tiling) {
    DecodeJob job{};
    CinchDecodeStep& s = job.step;
    describe(shape, s);
    char error[256] = "";
    if (!choose_tiling(s, processor_, wish, job.tiling, error, sizeof error)) {
      printf("  no kernel: %s\n", error);
      return 0;
    }
    tiling = job.tiling;
    const std::vector<int32_t> lengths = lengths_of(shape);
    const int longest = *std::max_element(lengths.begin(), lengths.end());
    const int blocks = (longest + kBlockTokens - 1) / kBlockTokens, pages = s.batch * blocks;
    const bool latent = shape.kind == CINCH_DECODE_LATENT;
    const bool packed = s.cache_format != CINCH_CACHE_16BIT;
    const int64_t cache = static_cast<int64_t>(pages) * s.keys.page_stride * (packed ? 1 : 2) * (latent ? 1 : 2);
    const int64_t small = int64_t{s.batch} * s.n_heads * (query_width(s) + out_width(s)) * 2 +
                          int64_t{s.n_heads} * s.v_head_dim * s.kv_lora_rank * 2;
    bytes = static_cast<uint64_t>(cache_bytes(shape) + small);
    const int copies = static_cast<int>(
        std::min<uint64_t>(rotation_bytes_ / bytes + 2, std::max<uint64_t>(1, pool_.bytes() / 2 / cache)));

    job.scratch = scratch_layout(s, job.tiling.parts, job.tiling.value_columns);
    DeviceMemory length_memory(lengths), table(page_table(s.batch, blocks));
    DeviceMemory plan(SplitPlan::bytes(job.tiling.parts, s.batch)), scratch(job.scratch.bytes);
    DeviceMemory out(static_cast<uint64_t>(s.batch * s.out_batch_stride) * 2), lse(uint64_t(s.batch) * s.n_heads * 4);
    CINCH_CHECK(cudaMemset(scratch.as(), 0, 256));
    CINCH_CHECK(launch_plan(plan.as<int32_t>(), job.tiling.parts, length_memory.as<int32_t>(), s.batch, 0, nullptr));
    s.lengths = length_memory.as<int32_t>();
    s.block_table = table.as<int32_t>();
    s.block_table_stride = blocks;
    s.plan = plan.as<int32_t>();
    s.scratch = scratch.as();
    s.out = out.as();
    s.lse = lse.as<float>();
    const uint64_t rest = static_cast<uint64_t>(small) / 256 * 256 + 1024;
    const double us = median_us(copies, [&](cudaStream_t stream, int i) {
      DecodeJob one = job;
      one.step.keys.data = part(static_cast<uint64_t>(cache) * i);
      one.step.values.data = latent ? nullptr : part(static_cast<uint64_t>(cache) * i + cache / 2);
      one.step.open.data = part(pool_.bytes() * 5 / 8 + rest * i);
      one.step.q = part(pool_.bytes() / 2 + rest * i);
      one.step.value_map = part(pool_.bytes() * 3 / 4 + rest * i);
      for (const int phases : launches) {
        one.phases = phases;
        CINCH_CHECK(launch_decode(one, stream));
      }
    });
    CINCH_CHECK(cudaDeviceSynchronize());
    return us;
  }

 private:
  static uint64_t pool_bytes() {
    size_t free_bytes = 0, total = 0;
    CINCH_CHECK(cudaMemGetInfo(&free_bytes, &total));
    return std::min<uint64_t>(kPool, free_bytes / 10 * 8) / 4096 * 4096;
  }
  void* part(uint64_t offset) const { return pool_.as<char>() + offset / 256 * 256 % (pool_.bytes() - 4096); }

  void measure_copy() {
    const uint64_t bytes = std::min<uint64_t>(uint64_t{1} << 30, pool_.bytes() / 2);
    const uint64_t words = bytes / 16;
    double copy_us = 1e30, read_us = 1e30, builtin_us = 1e30;
    for (const int per_processor : {4, 8, 16, 32}) {
      const int blocks = processor_.count * per_processor;
      copy_us = std::min(copy_us, median_us(2, [&](cudaStream_t stream, int) {
                           copy_kernel<<<blocks, 256, 0, stream>>>(pool_.as<uint4>(), pool_.as<uint4>() + words, words);
                         }));
      read_us = std::min(read_us, median_us(2, [&](cudaStream_t stream, int) {
                           read_kernel<<<blocks, 256, 0, stream>>>(pool_.as<uint4>(),
                                                                   pool_.as<uint32_t>() + 2 * bytes / 4 - 4, words);
                         }));
    }
    builtin_us = median_us(2, [&](cudaStream_t stream, int) {
      CINCH_CHECK(cudaMemcpyAsync(pool_.as<char>() + bytes, pool_.as(), bytes, cudaMemcpyDeviceToDevice, stream));
    });
    copy_ = 2 * static_cast<double>(bytes) / std::min(copy_us, builtin_us) * 1e-3;
    printf("copy %.0f GB/s (own kernel %.0f, cudaMemcpy %.0f), read alone %.0f GB/s\n", copy_,
           2e-3 * static_cast<double>(bytes) / copy_us, 2e-3 * static_cast<double>(bytes) / builtin_us,
           1e-3 * static_cast<double>(bytes) / read_us);
  }

  static std::vector<int32_t> lengths_of(const Shape& shape) {
    std::vector<int32_t> lengths(static_cast<size_t>(shape.batch), shape.length);
    std::mt19937 random(3);
    if (shape.ragged) {
      for (int32_t& length : lengths)
        length = shape.length / 2 + static_cast<int32_t>(random() % static_cast<unsigned>(shape.length));
    }
    return lengths;
  }
  static std::vector<int32_t> page_table(int batch, int blocks) {
    std::vector<int32_t> table(static_cast<size_t>(batch) * static_cast<size_t>(blocks));
    std::iota(table.begin(), table.end(), 0);
    std::shuffle(table.begin(), table.end(), std::mt19937(5));
    return table;
  }
  static void describe(const Shape& shape, CinchDecodeStep& s) {
    s.kind = shape.kind;
    s.type = CINCH_DECODE_BF16;
    s.batch = shape.batch;
    s.n_heads = shape.n_heads;
    s.n_kv_heads = shape.n_kv_heads;
    s.head_dim = shape.head_dim;
    s.kv_lora_rank = shape.rank;
    s.qk_rope_head_dim = shape.rope;
    s.v_head_dim = shape.v_head_dim;
    s.scale = 1 / std::sqrt(static_cast<float>(query_width(s)));
    s.q_head_stride = query_width(s);
    s.q_batch_stride = s.n_heads * s.q_head_stride;
    s.out_head_stride = out_width(s);
    s.out_batch_stride = s.n_heads * s.out_head_stride;
    s.value_map_row_stride = shape.rank;
    s.value_map_head_stride = int64_t{shape.rank} * shape.v_head_dim;
    s.keys.token_stride = row_width(s);
    s.keys.head_stride = kBlockTokens * s.keys.token_stride;
    s.keys.page_stride = s.keys.head_stride * (shape.kind == CINCH_DECODE_LATENT ? 1 : shape.n_kv_heads);
    s.values = shape.kind == CINCH_DECODE_LATENT ? CinchDecodeCache{} : s.keys;
    s.cache_format = shape.cache_format;
    if (shape.cache_format == CINCH_CACHE_16BIT) return;
    s.open = {nullptr, s.keys.page_stride, 0, s.keys.token_stride};
    s.keys = {nullptr, page_layout(shape.cache_format, shape.rank + shape.rope, 0).page_bytes, 0, 0};
  }

  DeviceMemory pool_;
  uint64_t rotation_bytes_ = 0;
  Multiprocessor processor_{};
  double copy_ = 0;  // GB/s
};

std::string text_of(const Shape& s) {
  char text[128];
  if (s.kind == CINCH_DECODE_LATENT) {
    snprintf(text, sizeof text, "latent R%-4d Dr%-3d H%-3d", s.rank, s.rope, s.n_heads);
  } else {
    snprintf(text, sizeof text, "grouped D%-3d g%-2d K%-2d  ", s.head_dim, s.n_heads / s.n_kv_heads, s.n_kv_heads);
  }
  std::string result = text;
  snprintf(text, sizeof text, " B%-3d L%-6d%s", s.batch, s.length, s.ragged ? "~" : " ");
  result += text;
  if (s.v_head_dim > 0) result += " Dv" + std::to_string(s.v_head_dim);
  if (s.cache_format != CINCH_CACHE_16BIT) result += std::string(" ") + format_name(s.cache_format);
  return result;
}

void report(Bench& bench, const Shape& shape, const TilingWish& wish = {},
            const std::vector<int>& launches = {kAllPhases}, const char* note = "") {
  uint64_t bytes = 0;
  Tiling t{};
  const double us = bench.time(shape, wish, launches, bytes, t);
  if (us <= 0) return;
  const double rate = static_cast<double>(bytes) / us * 1e-3;
  printf("%s  %9.2f us %7.0f GB/s %5.1f %%   tiles %dx%d warps %d/%d slabs %d resident %d parts %d %s\n",
         text_of(shape).c_str(), us, rate, 100 * rate / bench.copy_rate(), t.row_tiles, t.row_groups, t.column_warps,
         t.warps, t.slabs, t.resident, t.parts, note);
  const bool experiment =
      wish.row_tiles + wish.row_groups + wish.warps + wish.slabs + wish.resident + wish.parts != 0 || *note != 0;
  if (experiment) return;
  BenchLine line{};
  line.attention = shape.kind == CINCH_DECODE_LATENT ? "mla" : "gqa";
  const std::string kernel =
      shape.cache_format == CINCH_CACHE_16BIT ? "cinch" : std::string("cinch-") + format_name(shape.cache_format);
  line.kernel = kernel.c_str();
  line.batch = shape.batch;
  line.context = shape.length;
  line.ragged = shape.ragged;
  line.n_heads = shape.n_heads;
  line.n_kv_heads = shape.n_kv_heads;
  line.head_dim = shape.head_dim;
  line.kv_lora_rank = shape.rank;
  line.qk_rope_head_dim = shape.rope;
  line.v_head_dim = shape.v_head_dim;
  line.cache_bytes = Bench::cache_bytes(shape);
  line.us = us;
  bench.lines.write(line, bench.copy_rate());
}

constexpr int kRanks[] = {64, 96, 128, 192, 256, 320, 384, 448, 512};

Shape latent_shape(int rank, int rope, int n_heads, int batch, int length, int v_head_dim = 0) {
  Shape shape;
  shape.rank = rank;
  shape.rope = rope;
  shape.n_heads = n_heads;
  shape.batch = batch;
  shape.length = length;
  shape.v_head_dim = v_head_dim;
  return shape;
}
Shape grouped_shape(int head_dim, int group, int n_kv_heads, int batch, int length) {
  Shape shape;
  shape.kind = CINCH_DECODE_GROUPED;
  shape.head_dim = head_dim;
  shape.n_heads = group * n_kv_heads;
  shape.n_kv_heads = n_kv_heads;
  shape.batch = batch;
  shape.length = length;
  return shape;
}

void bench_grouped(Bench& bench) {
  for (const int head_dim : {64, 128}) {
    for (const int batch : {1, 16, 64}) {
      for (const int length : {2048, 8192, 32768})
        for (const int group : {1, 4, 5, 6, 7, 8, 9, 12})
          report(bench, grouped_shape(head_dim, group, 8, batch, length));
    }
  }
}
void bench_latent(Bench& bench) {
  for (const int rope : {32, 64}) {
    for (const int n_heads : {9, 16, 32, 64, 128})
      for (const int rank : kRanks) report(bench, latent_shape(rank, rope, n_heads, 64, 8192));
  }
  for (const int rank : {128, 512}) {
    Shape shape = latent_shape(rank, 64, 32, 128, 4096);
    shape.ragged = true;
    report(bench, shape);
  }
}
/// Latencies: few sequences, with and without the value map.
void bench_small(Bench& bench) {
  for (const int n_heads : {16, 32}) {
    for (const int batch : {1, 4}) {
      for (const int length : {1024, 4096}) {
        for (const int rank : {64, 128, 256, 512}) {
          report(bench, latent_shape(rank, 64, n_heads, batch, length));
          report(bench, latent_shape(rank, 64, n_heads, batch, length, 128));
        }
      }
    }
  }
  for (const int rank : {128, 512}) report(bench, latent_shape(rank, 64, 32, 64, 4096, 128));
}
void bench_packed(Bench& bench) {
  const auto all_formats = [&bench](Shape shape) {
    for (const int format : {CINCH_CACHE_16BIT, CINCH_CACHE_INT8, CINCH_CACHE_FP8, CINCH_CACHE_INT4}) {
      shape.cache_format = format;
      report(bench, shape);
    }
  };
  for (const int n_heads : {16, 32, 64})
    for (const int rank : kRanks) all_formats(latent_shape(rank, 64, n_heads, 64, 8192));
  for (const int rank : {128, 512}) {
    all_formats(latent_shape(rank, 64, 16, 1, 4096, 128));
    Shape shape = latent_shape(rank, 64, 32, 128, 4096);
    shape.ragged = true;
    all_formats(shape);
  }
}
void bench_tunings(Bench& bench) {
  for (const int rank : kRanks) {
    for (const int n_heads : {16, 32, 64}) {
      const Shape shape = latent_shape(rank, 64, n_heads, 64, 8192);
      for (const int tiles : {1, 2}) {
        for (const int groups : {1, 2}) {
          if (16 * tiles * groups > n_heads) continue;
          for (int resident = 1; resident <= 4; ++resident) {
            TilingWish wish;
            wish.row_tiles = tiles;
            wish.row_groups = groups;
            wish.resident = resident;
            report(bench, shape, wish);
          }
        }
      }
    }
  }
  for (const int resident : {1, 2, 3, 4}) {
    TilingWish wish;
    wish.resident = resident;
    report(bench, grouped_shape(128, 4, 8, 64, 8192), wish);
    report(bench, grouped_shape(64, 4, 8, 64, 8192), wish);
    report(bench, grouped_shape(128, 4, 8, 1, 2048), wish);
  }
}
__global__ void empty_kernel() {}

/// Where the time of short steps goes.
void bench_latency(Bench& bench) {
  for (const int cooperative : {0, 1}) {
    for (const int blocks : {bench.processor().count, 4 * bench.processor().count}) {
      const double us = median_us(50, [&](cudaStream_t stream, int) {
        cudaLaunchAttribute attribute{};
        attribute.id = cudaLaunchAttributeCooperative;
        attribute.val.cooperative = cooperative;
        cudaLaunchConfig_t config{};
        config.gridDim = dim3(static_cast<unsigned>(blocks));
        config.blockDim = dim3(128);
        config.stream = stream;
        config.attrs = &attribute;
        config.numAttrs = 1;
        CINCH_CHECK(cudaLaunchKernelEx(&config, &empty_kernel));
      });
      printf("empty kernel, %d blocks%s: %.2f us\n", blocks, cooperative != 0 ? ", cooperative" : "", us);
    }
  }
  std::vector<Shape> shapes = {latent_shape(64, 64, 16, 1, 1024),       latent_shape(512, 64, 32, 1, 4096),
                               latent_shape(512, 64, 32, 4, 4096, 128), latent_shape(64, 64, 16, 64, 8192),
                               latent_shape(512, 64, 16, 64, 8192),     grouped_shape(128, 4, 8, 1, 2048),
                               grouped_shape(128, 4, 8, 16, 2048)};
  for (const Shape& shape : shapes) {
    report(bench, shape, {}, {kAllPhases}, "one launch");
    report(bench, shape, {}, {kStream}, "stream");
    report(bench, shape, {}, {kMerge}, "merge");
    if (shape.v_head_dim > 0) report(bench, shape, {}, {kMap}, "map");
    report(bench, shape, {}, {kStream, kMerge}, "stream, merge");
    report(bench, shape, {}, {kStream | kMerge}, "stream and merge in one");
    for (const int parts : {16, 32, 64}) {
      if (shape.batch > 4) break;
      TilingWish wish;
      wish.parts = parts;
      report(bench, shape, wish, {kAllPhases}, "one launch, parts");
    }
  }
}
void bench_appends(Bench& bench) { bench_append(bench.copy_rate()); }
void bench_plan(Bench& bench) {
  for (const int batch : {1, 64, 1024}) {
    DeviceMemory lengths(std::vector<int32_t>(static_cast<size_t>(batch), 4096));
    const int parts = bench.processor().count;
    DeviceMemory plan(SplitPlan::bytes(parts, batch));
    const double us = median_us(50, [&](cudaStream_t stream, int) {
      CINCH_CHECK(launch_plan(plan.as<int32_t>(), parts, lengths.as<int32_t>(), batch, 0, stream));
    });
    printf("split plan, %d sequences: %.2f us\n", batch, us);
  }
}

}  // namespace

int run_benchmark(const std::vector<std::string>& arguments) {
  Bench bench;
  const std::map<std::string, void (*)(Bench&)> suites = {
      {"grouped", bench_grouped}, {"latent", bench_latent},   {"packed", bench_packed}, {"small", bench_small},
      {"tune", bench_tunings},    {"latency", bench_latency}, {"plan", bench_plan},     {"append", bench_appends}};
  std::vector<std::string> wanted(arguments.begin() + 1, arguments.end());
  std::string json, commit = "unknown";
  for (const auto& [name, value] : {std::pair{"--json", &json}, std::pair{"--commit", &commit}}) {
    const auto option = std::find(wanted.begin(), wanted.end(), name);
    if (option == wanted.end() || option + 1 == wanted.end()) continue;
    *value = *(option + 1);
    wanted.erase(option, option + 2);
  }
  if (!json.empty() && !bench.lines.open(json, commit)) {
    fprintf(stderr, "error: %s cannot be written\n", json.c_str());
    return 2;
  }
  if (wanted.empty()) wanted = {"plan", "append", "latent", "packed", "small", "grouped"};
  for (const std::string& name : wanted) {
    const auto suite = suites.find(name);
    if (suite == suites.end()) {
      fprintf(stderr, "error: no benchmark %s\n", name.c_str());
      return 2;
    }
    suite->second(bench);
    fflush(stdout);
  }
  return 0;
}

}  // namespace cinch::decode
