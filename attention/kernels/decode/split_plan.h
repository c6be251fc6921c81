// The split plan: how the visible tokens of all sequences are cut into `parts` contiguous shares of nearly equal work.
// A sequence that is cut has partial results, which the combine merges. Computed on the device once per step
// (cinch_decode_plan), on the host by the same functions in tests.
//
// Costs are counted in quarters of streaming a block of 64 tokens, with a fixed cost per sequence. Every boundary is
// computed by itself from the running sum of costs, so that one thread block computes all of them in parallel.
#pragma once

#include <stdint.h>

#include "attention/kernels/decode/decode_abi.h"
#include "attention/kernels/warp/device.h"

namespace cinch::decode {

using namespace warp;  // the words that this folder's kernels are written in

constexpr int kBlockTokens = CINCH_DECODE_PAGE;
constexpr int kBlockCost = 4;
constexpr int kSequenceCost = 2;  // reading queries and writing results

/// First token that a query at `length` - 1 sees.
CINCH_HOST_DEVICE int first_visible(int length, int window) {
  return window > 0 && length > window ? length - window : 0;
}
CINCH_HOST_DEVICE int first_block(int length, int window) { return first_visible(length, window) / kBlockTokens; }
CINCH_HOST_DEVICE int end_block(int length) { return (length + kBlockTokens - 1) / kBlockTokens; }
/// 0 for an empty sequence: the combine writes its result and no part knows of it.
CINCH_HOST_DEVICE int sequence_cost(int length, int window) {
  return length > 0 ? kBlockCost * (end_block(length) - first_block(length, window)) + kSequenceCost : 0;
}

/// A place between blocks: before `block` of `sequence`.
struct PlanPoint {
  int32_t sequence, block;
};
CINCH_HOST_DEVICE bool before(PlanPoint a, PlanPoint b) {
  return a.sequence < b.sequence || (a.sequence == b.sequence && a.block < b.block);
}

/// Parts that hold blocks of one sequence: [first, first + count); 0 parts for an empty one.
struct PlanShare {
  int32_t first, count;
};

/// Views of the plan's memory: parts + 1 points, batch shares, batch + 1 running sums of costs.
struct SplitPlan {
  PlanPoint* points;
  PlanShare* shares;
  int32_t* costs;
  int32_t parts, batch;

  CINCH_HOST_DEVICE static uint64_t bytes(int parts, int batch) {
    return (static_cast<uint64_t>(parts) + 1) * sizeof(PlanPoint) +
           static_cast<uint64_t>(batch) * (sizeof(PlanShare) + sizeof(int32_t)) + sizeof(int32_t);
  }
  CINCH_HOST_DEVICE static SplitPlan at(int32_t* memory, int parts, int batch) {
    PlanPoint* const points = reinterpret_cast<PlanPoint*>(memory);
    PlanShare* const shares = reinterpret_cast<PlanShare*>(points + parts + 1);
    return {points, shares, reinterpret_cast<int32_t*>(shares + batch), parts, batch};
  }
};

/// Where part `part` begins: a block with visible tokens, or the end of the batch; `part` = parts gives the end of the
/// last one. Needs plan.costs.
CINCH_HOST_DEVICE PlanPoint plan_point(const SplitPlan& plan, const int32_t* lengths, int window, int part) {
  const int32_t total = plan.costs[plan.batch];
  // Parts beyond one per block stay empty, at the end: an empty one inside a sequence would leave a hole in its shares.
  const int32_t most = total / kBlockCost, used = plan.parts < most ? plan.parts : most;
  const int64_t place = part < used ? static_cast<int64_t>(part) * total / used : total;
  if (place >= total) return {plan.batch, 0};
  int low = 0, high = plan.batch;  // the sequence whose costs cover `place`: costs[low] <= place < costs[low + 1]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (plan.costs[middle] <= place ? low : high) = middle;
  }
  const int inside =
      static_cast<int>(place) - plan.costs[low] - kSequenceCost + kBlockCost / 2;  // to the nearest block
  return {low, first_block(lengths[low], window) + (inside > 0 ? inside / kBlockCost : 0)};
}

/// Which parts hold sequence `sequence`. Needs plan.points.
CINCH_HOST_DEVICE PlanShare plan_share(const SplitPlan& plan, const int32_t* lengths, int window, int sequence) {
  const int length = lengths[sequence];
  if (length <= 0) return {0, 0};
  // The last part that begins at or before `point`; of several that begin there all but the last are empty.
  const auto part_of = [&plan](PlanPoint point) {
    int low = 0, high = plan.parts;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (before(point, plan.points[middle]) ? high : low) = middle;
    }
    return low;
  };
  const int first = part_of({sequence, first_block(length, window)});
  return {first, part_of({sequence, end_block(length) - 1}) - first + 1};
}

/// Partial results have two places per part: one for the sequence that the part begins in the middle of, one for the
/// sequence that goes on in the next part. `index` counts the parts of one sequence.
CINCH_HOST_DEVICE int partial_place(PlanShare share, int index) { return 2 * (share.first + index) + (index == 0); }

}  // namespace cinch::decode
