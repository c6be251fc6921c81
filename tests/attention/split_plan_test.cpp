#include "attention/kernels/decode/split_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "attention/kernels/decode/plan_block.h"
#include "attention/kernels/decode/slab_loader.h"
#include "tests/attention/emulation.h"

namespace cinch::decode {
namespace {

class SplitPlanTest : public EmulationTest {};

struct Planned {
  std::vector<int32_t> memory;
  SplitPlan plan;

  Planned(const std::vector<int32_t>& lengths, int parts, int window)
      : memory(SplitPlan::bytes(parts, static_cast<int>(lengths.size())) / sizeof(int32_t), -7),
        plan(SplitPlan::at(memory.data(), parts, static_cast<int>(lengths.size()))) {
    emulator::run({kPlanThreads, kPlanSharedBytes, false},
                  [&](int thread) { make_plan(plan, lengths.data(), window, thread); });
  }
};

/// Every visible block in one part, in order; shares that say who holds what; nearly equal work.
void check(const std::vector<int32_t>& lengths, int parts, int window) {
  const Planned planned(lengths, parts, window);
  const SplitPlan& plan = planned.plan;
  std::vector<std::vector<int>> holders(lengths.size());  // parts of each block, in order
  int64_t total = 0, largest = 0;
  for (int part = 0; part < parts; ++part) {
    int64_t blocks = 0;
    for (BlockWalk walk(plan.points[part], plan.points[part + 1], lengths.data(), window); walk.valid(); walk.next()) {
      auto& holder = holders[static_cast<size_t>(walk.sequence())];
      const int length = lengths[static_cast<size_t>(walk.sequence())];
      ASSERT_EQ(walk.block(), first_block(length, window) + static_cast<int>(holder.size()));
      ASSERT_EQ(walk.length(), length);
      ASSERT_EQ(walk.first(), window > 0 ? std::max(0, length - window) : 0);
      holder.push_back(part);
      ++blocks;
    }
    total += blocks;
    largest = std::max(largest, blocks);
  }
  int64_t expected = 0;
  std::vector<int> places;
  for (size_t s = 0; s < lengths.size(); ++s) {
    const int length = lengths[s];
    const int blocks = length > 0 ? end_block(length) - first_block(length, window) : 0;
    expected += blocks;
    ASSERT_EQ(static_cast<int>(holders[s].size()), blocks) << "sequence " << s;
    const PlanShare share = plan.shares[s];
    if (blocks == 0) {
      EXPECT_EQ(share.count, 0);
      continue;
    }
    EXPECT_EQ(share.first, holders[s].front());
    EXPECT_EQ(share.count, holders[s].back() - holders[s].front() + 1);
    for (int i = 0; share.count > 1 && i < share.count; ++i) {
      places.push_back(partial_place(share, i));
      EXPECT_NE(std::count(holders[s].begin(), holders[s].end(), share.first + i), 0) << "a part without its share";
    }
  }
  EXPECT_EQ(total, expected);
  std::sort(places.begin(), places.end());
  EXPECT_EQ(std::adjacent_find(places.begin(), places.end()), places.end()) << "a place is used twice";
  EXPECT_TRUE(places.empty() || places.back() < 2 * parts);
  const auto sequences = static_cast<int64_t>(lengths.size());
  EXPECT_LE(largest, (kBlockCost * total + kSequenceCost * sequences) / (kBlockCost * parts) + 1);
}

TEST_F(SplitPlanTest, CoversAllTokensOnce) {
  check({100}, 1, 0);
  check({100}, 7, 0);
  check({0}, 3, 0);
  check({0, 0, 64, 0}, 2, 0);
  check({64, 64, 64, 64}, 4, 0);
  check({1, 0, 17, 64, 65, 200, 333, 1000, 5, 0, 640, 63}, 13, 0);
  check({5000, 1, 1, 1, 1, 3000}, 132, 0);
  check({1000, 999, 64, 65, 1}, 6, 100);
  check({1000, 999, 64, 65, 1}, 6, 1);
}

TEST_F(SplitPlanTest, CoversAllTokensOnceAtRandom) {
  std::mt19937 random(11);
  for (int round = 0; round < 60; ++round) {
    std::vector<int32_t> lengths(1 + random() % 700);
    for (int32_t& length : lengths) length = random() % 4 == 0 ? 0 : static_cast<int32_t>(random() % 900);
    check(lengths, 1 + static_cast<int>(random() % 300), random() % 2 == 0 ? 0 : 1 + static_cast<int>(random() % 300));
  }
}

TEST_F(SplitPlanTest, OneSequenceUsesAllParts) {
  const Planned planned({64 * 132}, 33, 0);
  EXPECT_EQ(planned.plan.shares[0].count, 33);
  for (int part = 0; part < 33; ++part) EXPECT_EQ(planned.plan.points[part].block, 4 * part);
}

TEST_F(SplitPlanTest, EqualSequencesStayWhole) {
  const Planned planned(std::vector<int32_t>(66, 640), 33, 0);
  for (int i = 0; i < 66; ++i) EXPECT_EQ(planned.plan.shares[i].count, 1);
}

}  // namespace
}  // namespace cinch::decode
