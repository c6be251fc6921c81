#include "attention/kernels/prefill/emulated_prefill.h"

#include <stdio.h>

#include <array>
#include <stdexcept>

#include "attention/kernels/prefill/prefill_kernels.h"

namespace cinch::prefill {
namespace {

namespace emulator = warp::emulator;
using warp::Bf16;
using warp::Fp16;

constexpr Multiprocessor kProcessor{132, 233472, 232448};

template <class Work>
void run_grid(int64_t blocks, int warps, int shared_bytes, bool last_warp_first, const Work& work) {
  const emulator::Block block{32 * warps, static_cast<size_t>(shared_bytes), last_warp_first};
  for (int64_t index = 0; index < blocks; ++index)
    emulator::run(block, [&](int thread) { work(static_cast<int>(index), thread); });
}

struct RunForward {
  const ForwardJob& job;
  bool last_warp_first;

  template <class T, int kRowTiles, int kUnits>
  int visit() const {
    const ForwardTiling& t = job.tiling;
    run_grid(grid_of(job.work, t.row_blocks), t.warps, t.shared_bytes, last_warp_first,
             [this](int index, int thread) { ForwardBlock<T, kRowTiles, kUnits>(job, index, thread).run(); });
    return 0;
  }
};

struct RunGradient {
  const GradientJob& job;
  bool last_warp_first;

  template <class T, int kPass, int kUnits>
  int visit() const {
    const GradientTiling& t = job.tiling;
    run_grid(grid_of(job.work, t.own_blocks), t.warps, t.shared_bytes, last_warp_first,
             [this](int index, int thread) { GradientBlock<T, kPass, kUnits>(job, index, thread).run(); });
    return 0;
  }
};

template <class Run>
int32_t reported(char* error, uint64_t error_size, const Run& run) {
  try {
    run();
    return 0;
  } catch (const std::runtime_error& fault) {
    snprintf(error, error_size, "%s", fault.what());
    return -1;
  }
}

}  // namespace

void emulate_forward(const CinchPrefill& work, const Multiprocessor& processor, bool last_warp_first) {
  std::array<char, 256> error{};
  ForwardJob job{work, {}};
  if (!check_prefill(work, false, error.data(), error.size()) ||
      !choose_forward_tiling(work, processor, job.tiling, error.data(), error.size()))
    throw std::runtime_error(error.data());
  const RunForward run{job, last_warp_first};
  work.type == CINCH_PREFILL_BF16 ? visit_forward<Bf16>(job.tiling, run) : visit_forward<Fp16>(job.tiling, run);
}

void emulate_backward(const CinchPrefill& work, const Multiprocessor& processor, bool last_warp_first) {
  std::array<char, 256> error{};
  GradientPasses passes{};
  if (!check_prefill(work, true, error.data(), error.size()) ||
      !choose_gradient_passes(work, processor, passes, error.data(), error.size()))
    throw std::runtime_error(error.data());
  const bool bf16 = work.type == CINCH_PREFILL_BF16;
  run_grid(row_state_blocks(work), kRowStateThreads / 32, 0, last_warp_first, [&](int index, int thread) {
    bf16 ? write_row_states<Bf16>(work, index, thread) : write_row_states<Fp16>(work, index, thread);
  });
  for (int i = 0; i < passes.count; ++i) {
    const GradientJob job{work, passes.tilings[i]};
    const RunGradient run{job, last_warp_first};
    bf16 ? visit_gradient<Bf16>(job.tiling, run) : visit_gradient<Fp16>(job.tiling, run);
  }
}

const PrefillFunctions& emulated_prefill_functions() {
  static const PrefillFunctions functions = {
      [](const CinchPrefill* work, void*, char* error, uint64_t error_size) {
        return reported(error, error_size, [work] { emulate_forward(*work, kProcessor, false); });
      },
      [](const CinchPrefill* work, void*, char* error, uint64_t error_size) {
        return reported(error, error_size, [work] { emulate_backward(*work, kProcessor, false); });
      }};
  return functions;
}

}  // namespace cinch::prefill
