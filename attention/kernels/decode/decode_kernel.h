// A whole kernel, as nvcc compiles it and as the warp emulator runs it, and which ones there are.
#pragma once

#include "attention/kernels/decode/combine.h"
#include "attention/kernels/decode/decode_block.h"

namespace cinch::decode {

/// Place of a thread in the grid of parts x head blocks.
struct GridPlace {
  int part, parts, head_block, head_blocks, thread;
};

/// `join` waits for all thread blocks of the grid; called by all threads between the phases of one launch.
template <class T, int kRowTiles, int kUnits, int kColumnWarps, bool kPacked, class Join>
CINCH_DEVICE void decode(const DecodeJob& job, GridPlace place, Join join) {
  const bool streams = (job.phases & kStream) != 0, merges = (job.phases & kMerge) != 0;
  const bool maps = (job.phases & kMap) != 0 && job.step.v_head_dim > 0;
  if (streams) {
    DecodeBlock<T, kRowTiles, kUnits, kColumnWarps, kPacked> block(job, place.part, place.head_block, place.thread);
    block.run();
  }
  Combine<T> combine(job, place.part + place.head_block * place.parts, place.parts * place.head_blocks, place.thread);
  if (maps) combine.prefetch_map();
  if (merges) {
    combine.prefetch_share();
    if (streams) join();
    combine.merge();
  }
  if (maps) {
    if (merges) join();
    combine.map();
  }
}

/// Calls visitor.visit<T, row tiles, units, column warps, packed>() of the kernel that a tiling names; T as given.
template <class T, class Visitor>
auto visit_packed_kernel(const Tiling& t, Visitor&& visitor) {
  const bool one = t.row_tiles == 1;
  if (t.column_warps == 1)
    return one ? visitor.template visit<T, 1, 8, 1, true>() : visitor.template visit<T, 2, 8, 1, true>();
  if (t.column_warps == 2)
    return one ? visitor.template visit<T, 1, 8, 2, true>() : visitor.template visit<T, 2, 8, 2, true>();
  return one ? visitor.template visit<T, 1, 8, 4, true>() : visitor.template visit<T, 2, 8, 4, true>();
}
template <class T, class Visitor>
auto visit_kernel(const Tiling& t, Visitor&& visitor) {
  const bool one = t.row_tiles == 1;
  if (t.units == 4)
    return one ? visitor.template visit<T, 1, 4, 1, false>() : visitor.template visit<T, 2, 4, 1, false>();
  if (t.column_warps == 1)
    return one ? visitor.template visit<T, 1, 8, 1, false>() : visitor.template visit<T, 2, 8, 1, false>();
  if (t.column_warps == 2)
    return one ? visitor.template visit<T, 1, 8, 2, false>() : visitor.template visit<T, 2, 8, 2, false>();
  return one ? visitor.template visit<T, 1, 8, 4, false>() : visitor.template visit<T, 2, 8, 4, false>();
}

}  // namespace cinch::decode
