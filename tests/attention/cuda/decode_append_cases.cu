// The cache append on the GPU: byte for byte what the loops of append_cases.h write on the host, and its times.

#include "attention/kernels/decode/append_abi.h"
#include "attention/kernels/decode/page_layout.h"
#include "tests/attention/append_grid.h"
#include "tests/attention/cuda/device_program.h"
#include "tests/attention/cuda/median_time.h"

namespace cinch::decode {
namespace {

/// A case's arrays on the device.
struct DeviceAppend {
  DeviceMemory q, k, v, scales, cos, sin, table, lengths, q_out, keys, values, open;
  CinchCacheAppend append;

  explicit DeviceAppend(const AppendArrays& a)
      : q(a.q),
        k(a.k),
        v(a.v),
        scales(a.scales),
        cos(a.cos),
        sin(a.sin),
        table(a.table),
        lengths(a.lengths),
        q_out(a.to.q_out),
        keys(a.to.keys),
        values(a.to.values),
        open(a.to.open),
        append(a.append) {
    const auto shifted = [&a](const DeviceMemory& memory) {
      return memory.bytes() > 0 ? memory.as<uint16_t>() + a.shift : nullptr;
    };
    append.q.data = shifted(a.in_place ? q_out : q);
    append.k.data = shifted(k);
    append.v.data = shifted(v);
    append.scales.data = shifted(scales);
    append.cos = cos.as<float>();
    append.sin = sin.as<float>();
    append.q_out = shifted(q_out);
    append.keys.data = keys.as();
    append.values.data = values.as();
    append.open.data = open.as();
    append.block_table = table.as<int32_t>();
    append.lengths = lengths.as<int32_t>();
  }

  AppendResult read(const AppendResult& like) const {
    AppendResult result = like;
    if (!result.q_out.empty()) q_out.read(result.q_out);
    keys.read(result.keys);
    if (!result.values.empty()) values.read(result.values);
    if (!result.open.empty()) open.read(result.open);
    return result;
  }
};

/// Empty, or what is wrong.
std::string fault_of(const AppendArrays& arrays, const AppendResult& expected) {
  for (int round = 0; round < 2; ++round) {
    const DeviceAppend device(arrays);
    char error[512] = "";
    if (cinch_cache_append(&device.append, nullptr, error, sizeof error) != 0) return error;
    const cudaError_t status = cudaDeviceSynchronize();
    if (status != cudaSuccess) return cudaGetErrorString(status);
    const AppendResult found = device.read(expected);
    if (found.q_out != expected.q_out) return "q_out differs";
    if (found.keys != expected.keys) return "keys differ";
    if (found.values != expected.values) return "values differ";
    if (found.open != expected.open) return "open pages differ";
  }
  return "";
}

/// Bytes that an append must read and write once.
uint64_t moved_bytes(const CinchCacheAppend& a) {
  const uint64_t tokens = static_cast<uint64_t>(a.batch) * a.tokens, table = 4 * static_cast<uint64_t>(a.rotary_dim);
  if (a.kind == CINCH_DECODE_GROUPED)
    return tokens * (4 * uint64_t(a.head_dim) * (a.n_heads + 2 * a.n_kv_heads) + table);
  const uint64_t columns = a.kv_lora_rank + a.qk_rope_head_dim;
  const PageLayout layout = page_layout(a.cache_format, static_cast<int>(columns), 0);
  const uint64_t row = a.cache_format == CINCH_CACHE_16BIT ? 2 * columns : layout.page_bytes / CINCH_DECODE_PAGE;
  return tokens * (4 * uint64_t(a.qk_rope_head_dim) * a.n_heads + 2 * columns + row + table);
}

/// Over enough caches that a replay touches more than the L2 cache holds, or 200.
void bench_one(const char* name, AppendCase c, double copy_rate) {
  AppendArrays arrays = AppendBuilder(c, 1).build();
  arrays.point();
  int device = 0, l2 = 0;
  CINCH_CHECK(cudaGetDevice(&device));
  CINCH_CHECK(cudaDeviceGetAttribute(&l2, cudaDevAttrL2CacheSize, device));
  const uint64_t bytes = moved_bytes(arrays.append);
  const int copies = static_cast<int>(std::min<uint64_t>(200, 3 * static_cast<uint64_t>(l2) / bytes + 1));
  std::vector<DeviceAppend> held;
  for (int i = 0; i < copies; ++i) held.emplace_back(arrays);
  const double us = median_us(copies, [&](cudaStream_t stream, int i) {
    char error[512] = "";
    if (cinch_cache_append(&held[static_cast<size_t>(i)].append, stream, error, sizeof error) == 0) return;
    fprintf(stderr, "error: %s\n", error);
    exit(2);
  });
  const double rate = static_cast<double>(bytes) / us * 1e-3;
  printf("append %-34s %8.2f us %10.3f MB %8.1f GB/s %6.1f%% of copy\n", name, us, static_cast<double>(bytes) * 1e-6,
         rate, 100 * rate / copy_rate);
}

}  // namespace

int run_append_cases(bool tiny, bool loud) {
  const std::vector<AppendCase> cases = tiny ? tiny_appends() : all_appends();
  std::vector<AppendArrays> arrays(cases.size());
  std::vector<AppendResult> expected(cases.size());
  on_all_cores(cases.size(), [&](size_t i) {
    arrays[i] = AppendBuilder(cases[i], static_cast<uint32_t>(i + 1)).build();
    arrays[i].point();
    expected[i] = expected_append(arrays[i]);
  });
  int faults = 0;
  for (size_t i = 0; i < cases.size(); ++i) {
    const std::string fault = fault_of(arrays[i], expected[i]);
    faults += fault.empty() ? 0 : 1;
    say_case("append " + name_of(cases[i]), fault.empty(), fault.empty() ? "same bytes" : fault, loud);
  }
  printf("cache append: %zu of %zu cases hold\n", cases.size() - static_cast<size_t>(faults), cases.size());
  return faults;
}

void bench_append(double copy_rate) {
  const auto sequences = [](int batch, int length) { return std::vector<int32_t>(static_cast<size_t>(batch), length); };
  const auto sizes = [](const AppendCase& c) {
    return ", B " + std::to_string(c.lengths.size()) + " T " + std::to_string(c.tokens);
  };
  std::vector<std::pair<int, int>> steps = {{1, 1}, {16, 1}, {64, 1}, {1, 2048}};  // sequences, tokens
  const char* const formats[] = {"latent 512+64", "latent 512+64 int8", "latent 512+64 fp8", "latent 512+64 int4"};
  for (const auto& [batch, tokens] : steps) {
    const int length = tokens > 1 ? tokens : 63;
    AppendCase c = grouped_append(128, 128, 32, 8, tokens, sequences(batch, length));
    bench_one(("grouped H 32 K 8 D 128" + sizes(c)).c_str(), c, copy_rate);
    for (int format = CINCH_CACHE_16BIT; format <= CINCH_CACHE_INT4; ++format) {
      c = latent_append(512, 64, tokens, sequences(batch, length));
      c.n_heads = 32;
      c.n_kv_heads = 1;
      c.format = format;
      bench_one((formats[format] + sizes(c)).c_str(), c, copy_rate);
    }
    if (tokens > 1) continue;
    c.lengths = sequences(batch, 64);
    bench_one(("latent 512+64 int4, pages full" + sizes(c)).c_str(), c, copy_rate);
  }
}

}  // namespace cinch::decode
