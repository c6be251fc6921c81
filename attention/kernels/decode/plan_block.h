// The split plan by one thread block of kPlanThreads threads.
#pragma once

#include "attention/kernels/decode/split_plan.h"
#include "attention/kernels/warp/warp.h"

namespace cinch::decode {

constexpr int kPlanThreads = 256;
constexpr int kPlanSharedBytes = kPlanThreads * 4;

CINCH_DEVICE void make_plan(SplitPlan plan, const int32_t* lengths, int window, int thread) {
  const int per_thread = (plan.batch + kPlanThreads - 1) / kPlanThreads;
  const int begin = thread * per_thread < plan.batch ? thread * per_thread : plan.batch;
  const int end = begin + per_thread < plan.batch ? begin + per_thread : plan.batch;
  uint32_t sum = 0;
  for (int i = begin; i < end; ++i) sum += static_cast<uint32_t>(sequence_cost(lengths[i], window));
  // Running sums over the threads, by doubling.
  const Shared mine = shared_begin() + static_cast<Shared>(4 * thread);
  uint32_t running = sum;
  for (int step = 1; step < kPlanThreads; step *= 2) {
    shared_store(mine, running);
    sync_block();
    if (thread >= step) running += shared_word(mine - static_cast<Shared>(4 * step));
    sync_block();
  }
  uint32_t cost = running - sum;
  for (int i = begin; i < end; ++i) {
    plan.costs[i] = static_cast<int32_t>(cost);
    cost += static_cast<uint32_t>(sequence_cost(lengths[i], window));
  }
  if (thread == kPlanThreads - 1) plan.costs[plan.batch] = static_cast<int32_t>(running);
  sync_block();
  for (int i = thread; i <= plan.parts; i += kPlanThreads) plan.points[i] = plan_point(plan, lengths, window, i);
  sync_block();
  for (int i = thread; i < plan.batch; i += kPlanThreads) plan.shares[i] = plan_share(plan, lengths, window, i);
}

}  // namespace cinch::decode
