// Checks and times the sm_90 latent decode on a GPU of compute capability 9.0. No LibTorch, no driver library: copy the
// program to a machine with the GPU and run it.
//   latent_sm90_device_test           each hardware assumption by itself, then the grid against fp64
//   latent_sm90_device_test --tiny    few and small shapes, for compute-sanitizer
//   latent_sm90_device_test --bench   times, beside the copy bandwidth of the same run
#include <atomic>
#include <thread>

#include "tests/attention/cuda/latent_sm90_assumptions.h"
#include "tests/attention/cuda/latent_sm90_bench.h"
#include "tests/attention/cuda/latent_sm90_program.h"
#include "tests/attention/decode_grid.h"

namespace cinch::sm90 {
namespace {

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
bool run_case(const DecodeCase& c, Prepared& prepared, int parts, int repeats, bool quiet,
              const decode::Sm90Options& options = {}) {
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
    run_job(work.job, decode::kAllPhases, nullptr, options);
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
