#include "attention/kernels/decode/emulated_decode.h"

#include <array>
#include <stdexcept>
#include <vector>

#include "attention/kernels/decode/decode_kernel.h"
#include "attention/kernels/decode/plan_block.h"

namespace cinch::decode {
namespace {

/// All thread blocks of one phase, one after the other.
struct RunGrid {
  const DecodeJob& job;
  bool last_warp_first;

  template <class T, int kRowTiles, int kUnits, int kColumnWarps, bool kPacked>
  int visit() const {
    const Tiling& t = job.tiling;
    const int head_blocks = t.cache_heads * t.row_blocks * t.column_blocks;
    const emulator::Block block{32 * t.warps * t.row_groups, static_cast<size_t>(t.shared_bytes), last_warp_first};
    for (int head_block = 0; head_block < head_blocks; ++head_block) {
      for (int part = 0; part < t.parts; ++part) {
        emulator::run(block, [&](int thread) {
          decode<T, kRowTiles, kUnits, kColumnWarps, kPacked>(job, {part, t.parts, head_block, head_blocks, thread},
                                                              [] {});
        });
      }
    }
    return 0;
  }
};

template <class T>
void run_grid(const RunGrid& grid) {
  const Tiling& t = grid.job.tiling;
  grid.job.step.cache_format == CINCH_CACHE_16BIT ? visit_kernel<T>(t, grid) : visit_packed_kernel<T>(t, grid);
}

}  // namespace

void run_emulated_plan(int32_t* plan, int32_t parts, const int32_t* lengths, int32_t batch, int32_t window,
                       bool last_warp_first) {
  const SplitPlan views = SplitPlan::at(plan, parts, batch);
  emulator::run({kPlanThreads, kPlanSharedBytes, last_warp_first},
                [&](int thread) { make_plan(views, lengths, window, thread); });
}

void run_emulated_job(DecodeJob job, bool last_warp_first) {
  if (const char* const missing = missing_array(job.step)) throw std::runtime_error(missing);
  job.scratch = scratch_layout(job.step, job.tiling.parts, job.tiling.value_columns);
  for (const int phase : {kStream, kMerge, kMap}) {
    job.phases = phase;
    const RunGrid grid{job, last_warp_first};
    if (job.step.type == CINCH_DECODE_BF16) {
      run_grid<Bf16>(grid);
    } else {
      run_grid<Fp16>(grid);
    }
  }
}

void run_emulated(const CinchDecodeStep& step, const Multiprocessor& processor, const TilingWish& wish,
                  bool last_warp_first) {
  DecodeJob job{};
  std::array<char, 256> error{};
  if (!choose_tiling(step, processor, wish, job.tiling, error.data(), error.size()))
    throw std::runtime_error(error.data());
  const int32_t parts = job.tiling.parts;
  std::vector<int32_t> plan(SplitPlan::bytes(parts, step.batch) / sizeof(int32_t), -1);
  run_emulated_plan(plan.data(), parts, step.lengths, step.batch, step.window, last_warp_first);
  std::vector<uint64_t> scratch(scratch_layout(step, parts, job.tiling.value_columns).bytes / sizeof(uint64_t),
                                ~uint64_t{0});
  job.step = step;
  job.step.plan = plan.data();
  job.step.scratch = scratch.data();
  run_emulated_job(job, last_warp_first);
}

}  // namespace cinch::decode
