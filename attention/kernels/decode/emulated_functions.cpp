#include <stdio.h>

#include <array>
#include <stdexcept>

#include "attention/kernels/decode/emulated_decode.h"
#include "attention/kernels/decode/split_plan.h"

namespace cinch {
namespace {

using namespace decode;

/// One warp per thread block keeps fibres few; two parts leave something to merge.
Tiling tiling_of(const CinchDecodeStep& step) {
  constexpr Multiprocessor kSmall{1, 167936, 166912};
  TilingWish wish;
  wish.warps = 1;
  wish.parts = 2;
  Tiling tiling{};
  std::array<char, 256> error{};
  if (step.kernel == CINCH_DECODE_SM90) throw std::runtime_error("the emulator runs the mma kernel only");
  if (!choose_tiling(step, kSmall, wish, tiling, error.data(), error.size())) throw std::runtime_error(error.data());
  return tiling;
}

template <class Work>
int32_t reported(char* error, uint64_t error_size, Work work) {
  try {
    work();
    return 0;
  } catch (const std::exception& fault) {
    snprintf(error, error_size, "%s", fault.what());
    return -1;
  }
}

int32_t get_sizes(const CinchDecodeStep* step, CinchDecodeSizes* sizes, char* error, uint64_t error_size) {
  return reported(error, error_size, [&] {
    const Tiling tiling = tiling_of(*step);
    sizes->kernel = CINCH_DECODE_MMA;
    sizes->parts = tiling.parts;
    sizes->resident = tiling.resident;
    sizes->plan_bytes = SplitPlan::bytes(tiling.parts, step->batch);
    sizes->scratch_bytes = scratch_layout(*step, tiling.parts, tiling.value_columns).bytes;
  });
}

int32_t make_plan(int32_t* plan, int32_t parts, const int32_t* lengths, int32_t batch, int32_t window, void*,
                  char* error, uint64_t error_size) {
  return reported(error, error_size, [&] { run_emulated_plan(plan, parts, lengths, batch, window, false); });
}

int32_t run_step(const CinchDecodeStep* step, void*, char* error, uint64_t error_size) {
  return reported(error, error_size, [&] {
    DecodeJob job{};
    job.step = *step;
    job.tiling = tiling_of(*step);
    run_emulated_job(job, false);
  });
}

int32_t run_append(const CinchCacheAppend* append, void*, char* error, uint64_t error_size) {
  return reported(error, error_size, [&] { run_emulated(*append, false); });
}

}  // namespace

const DecodeFunctions& emulated_decode_functions() {
  static const DecodeFunctions functions{&get_sizes, &make_plan, &run_step, &run_append};
  return functions;
}

}  // namespace cinch
