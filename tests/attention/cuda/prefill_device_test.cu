// A program of its own that runs the prefill kernels on the GPU against the double-precision reference, for machines
// that have a GPU and nothing else: it needs the driver alone.
//   prefill_device_test            the case grid
//   prefill_device_test --tiny     a few small cases, for compute-sanitizer
//   prefill_device_test --bench    times (prefill_device_bench.cu)
// With -v every case says how far it is from the reference.
// Exit code 0: all cases hold; 1: some do not; 2: a CUDA call failed; 77: no GPU.

#include "tests/attention/cuda/prefill_program.h"
#include "tests/attention/prefill_grid.h"

namespace cinch::prefill {
namespace {

/// A case's arrays on the device.
struct DeviceCase {
  DeviceMemory q, k, v, out, d_out, d_q, d_k, d_v, lse, first_keys, row_states;
  CinchPrefill work;

  explicit DeviceCase(const PrefillArrays& a)
      : q(a.q),
        k(a.k),
        v(a.v),
        out(a.out),
        d_out(a.d_out),
        d_q(a.d_q),
        d_k(a.d_k),
        d_v(a.d_v),
        lse(a.lse),
        first_keys(a.first_keys),
        row_states(a.row_states),
        work(a.work) {
    work.q.data = q.as();
    work.k.data = k.as();
    work.v.data = v.as();
    work.out.data = out.as();
    work.d_out.data = d_out.as();
    work.d_q.data = d_q.as();
    work.d_k.data = d_k.as();
    work.d_v.data = d_v.as();
    work.lse = lse.as<float>();
    work.first_keys = first_keys.as<int32_t>();
    work.row_states = row_states.as();
  }

  void read(PrefillArrays& to) const {
    out.read(to.out);
    d_q.read(to.d_q);
    d_k.read(to.d_k);
    d_v.read(to.d_v);
    lse.read(to.lse);
  }
};

/// Empty, or why the work could not be run.
std::string run_work(const CinchPrefill& work) {
  char error[512] = "";
  if (cinch_prefill_forward(&work, nullptr, error, sizeof error) != 0) return error;
  if (cinch_prefill_backward(&work, nullptr, error, sizeof error) != 0) return error;
  const cudaError_t status = cudaDeviceSynchronize();
  return status == cudaSuccess ? "" : cudaGetErrorString(status);
}

struct Prepared {
  PrefillArrays arrays;
  ReferenceForward forward;
  ReferenceGradients backward;
};
/// Arrays and references of all cases, on all cores; the largest cases, which come last, first.
std::vector<Prepared> prepare(const std::vector<PrefillCase>& cases) {
  std::vector<Prepared> prepared(cases.size());
  decode::on_all_cores(cases.size(), [&](size_t i) {
    const size_t at = cases.size() - 1 - i;
    Prepared& p = prepared[at];
    p.arrays = PrefillBuilder(cases[at], static_cast<uint32_t>(at + 1)).build();
    p.arrays.point();
    p.forward = reference_forward(p.arrays.work);
    p.backward = reference_backward(p.arrays.work);
  });
  return prepared;
}

/// True when the case holds. Two runs in two memories must agree bit for bit.
bool holds(const PrefillCase& c, const Prepared& prepared, bool loud) {
  PrefillArrays arrays = prepared.arrays, second = prepared.arrays;
  arrays.point();
  DeviceCase device(arrays), again(arrays);
  std::string fault = run_work(device.work);
  if (fault.empty()) fault = run_work(again.work);
  std::string verdict = fault;
  if (fault.empty()) {
    device.read(arrays);
    again.read(second);
    PrefillComparison comparison(arrays);
    comparison.forward(prepared.forward);
    comparison.backward(prepared.forward, prepared.backward);
    const bool same = arrays.out == second.out && arrays.lse == second.lse && arrays.d_q == second.d_q &&
                      arrays.d_k == second.d_k && arrays.d_v == second.d_v;
    verdict = comparison.errors().text() + (same ? "" : ", runs differ");
    if (!comparison.errors().good() || !same) fault = verdict;
  }
  decode::say_case(name_of(c), fault.empty(), verdict, loud);
  return fault.empty();
}

int run_cases(bool tiny, bool loud) {
  const std::vector<PrefillCase> cases = tiny ? tiny_grid() : device_grid();
  const std::vector<Prepared> prepared = prepare(cases);
  int good = 0;
  for (size_t i = 0; i < cases.size(); ++i) good += holds(cases[i], prepared[i], loud) ? 1 : 0;
  printf("prefill kernels: %d of %zu cases hold\n", good, cases.size());
  return good == static_cast<int>(cases.size()) ? 0 : 1;
}

}  // namespace
}  // namespace cinch::prefill

int main(int argc, char** argv) {
  using namespace cinch::prefill;
  if (!cinch::decode::announce_device()) return cinch::decode::kSkipped;
  bool tiny = false, loud = false;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--bench") return run_prefill_benchmark();
    tiny = tiny || argument == "--tiny";
    loud = loud || argument == "-v";
  }
  return run_cases(tiny, loud);
}
