// A program of its own that runs the decode kernels on the GPU against the double-precision reference, and the cache
// append against the loops of append_cases.h, for machines that have a GPU and nothing else: it needs the driver alone.
//   decode_device_test            the case grid
//   decode_device_test --tiny     a few small cases, for compute-sanitizer
//   decode_device_test --bench    times (decode_device_bench.cu)
// Exit code 0: all cases hold; 1: some do not; 2: a CUDA call failed; 77: no GPU.

#include "tests/attention/cuda/device_program.h"
#include "tests/attention/decode_cases.h"
#include "tests/attention/decode_grid.h"

namespace cinch::decode {
namespace {

/// A case's arrays on the device.
struct DeviceCase {
  DeviceMemory q, keys, values, open, map, bias, table, lengths, out, lse, plan, scratch;
  CinchDecodeStep step;

  explicit DeviceCase(const DecodeArrays& a)
      : q(a.q),
        keys(a.keys),
        values(a.values),
        open(a.open),
        map(a.value_map),
        bias(a.value_bias),
        table(a.table),
        lengths(a.lengths),
        out(a.out),
        lse(a.lse),
        step(a.step) {
    step.q = q.as();
    step.keys.data = keys.as();
    step.values.data = values.as();
    step.open.data = open.as();
    step.value_map = map.as();
    step.value_bias = bias.as();
    step.block_table = table.as<int32_t>();
    step.lengths = lengths.as<int32_t>();
    step.out = out.as();
    step.lse = lse.as<float>();
  }
};

/// Empty, or why the step could not be run.
std::string run_step(DeviceCase& device) {
  char error[512] = "";
  CinchDecodeSizes sizes{};
  CinchDecodeStep& step = device.step;
  if (cinch_decode_sizes(&step, &sizes, error, sizeof error) != 0) return error;
  device.plan = DeviceMemory(sizes.plan_bytes);
  device.scratch = DeviceMemory(sizes.scratch_bytes);
  CINCH_CHECK(cudaMemset(device.scratch.as(), 0xff, sizes.scratch_bytes));
  CINCH_CHECK(cudaMemset(device.scratch.as(), 0, 256));
  step.plan = device.plan.as<int32_t>();
  step.scratch = device.scratch.as();
  if (cinch_decode_plan(device.plan.as<int32_t>(), sizes.parts, step.lengths, step.batch, step.window, nullptr, error,
                        sizeof error) != 0)
    return error;
  for (int run = 0; run < 2; ++run)
    if (cinch_decode_run(&step, nullptr, error, sizeof error) != 0) return error;
  const cudaError_t status = cudaDeviceSynchronize();
  return status == cudaSuccess ? "" : cudaGetErrorString(status);
}

struct Prepared {
  DecodeArrays arrays;
  ReferenceResult expected;
};
/// Arrays and references of all cases, on all cores.
std::vector<Prepared> prepare(const std::vector<DecodeCase>& cases) {
  std::vector<Prepared> prepared(cases.size());
  on_all_cores(cases.size(), [&](size_t i) {
    prepared[i].arrays = CaseBuilder(cases[i], static_cast<uint32_t>(i + 1)).build();
    prepared[i].arrays.point();
    prepared[i].expected = reference_decode(prepared[i].arrays.step);
  });
  return prepared;
}

/// True when the case holds with a CinchDecodeKernel. Two runs in two memories must agree bit for bit.
bool holds(const DecodeCase& c, Prepared& prepared, int kernel, bool loud) {
  DecodeArrays arrays = prepared.arrays;
  arrays.step.kernel = kernel;
  arrays.point();
  DeviceCase device(arrays), again(arrays);
  std::string fault = run_step(device);
  if (fault.empty()) fault = run_step(again);
  std::string verdict = fault;
  if (fault.empty()) {
    std::vector<uint16_t> second(arrays.out.size());
    again.out.read(second);
    device.out.read(arrays.out);
    device.lse.read(arrays.lse);
    const DecodeErrors errors = compare(arrays, prepared.expected);
    const bool same = second == arrays.out;
    verdict = errors.text() + (same ? "" : ", runs differ");
    if (!errors.good() || !same) fault = verdict;
  }
  say_case(name_of(c), fault.empty(), verdict, loud);
  return fault.empty();
}

int run_cases(bool tiny, bool loud) {
  const std::vector<DecodeCase> cases = tiny ? tiny_grid() : device_grid();
  std::vector<Prepared> prepared = prepare(cases);
  int good = 0;
  for (size_t i = 0; i < cases.size(); ++i) {
    const bool mma = holds(cases[i], prepared[i], CINCH_DECODE_MMA, loud);
    good += holds(cases[i], prepared[i], CINCH_DECODE_ANY, loud) && mma ? 1 : 0;
  }
  printf("decode kernels: %d of %zu cases hold\n", good, cases.size());
  return good == static_cast<int>(cases.size()) ? 0 : 1;
}

}  // namespace
}  // namespace cinch::decode

int main(int argc, char** argv) {
  using namespace cinch::decode;
  if (!announce_device()) return kSkipped;
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (!arguments.empty() && arguments[0] == "--bench") return run_benchmark(arguments);
  bool tiny = false, loud = false;
  for (const std::string& argument : arguments) {
    tiny = tiny || argument == "--tiny";
    loud = loud || argument == "-v";
  }
  const int appends = run_append_cases(tiny, loud);
  return run_cases(tiny, loud) == 0 && appends == 0 ? 0 : 1;
}
