#include "train/process_group.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/errors.h"
#include "tests/train/processes.h"

namespace cinch {
namespace {

TEST(ProcessGroup, SumsGathersAndScatters) {
  if (test_rank() < 0) {
    const TempFolder folder;
    return run_processes(3, folder.path());
  }
  const auto group = join_test_processes();
  ASSERT_EQ(group->world(), 3);
  EXPECT_EQ(group->backend(), "gloo");
  const int rank = group->rank();
  for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
    const at::Tensor ones = at::full({6}, rank + 1.0, type);
    group->all_reduce(ones)();
    EXPECT_TRUE(at::equal(ones, at::full({6}, 6.0, type)));
    const at::Tensor whole = at::arange(6, type) * (rank + 1), share = at::empty({2}, type);
    group->reduce_scatter(share, whole)();
    EXPECT_TRUE(at::equal(share, at::arange(6, type).narrow(0, 2 * rank, 2) * 6));
  }
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const at::Tensor whole = at::zeros({6}, type);
    whole.narrow(0, 2 * rank, 2).fill_(rank + 1);
    const auto first = group->all_gather(whole, whole.narrow(0, 2 * rank, 2));  // in place, and two at once
    const at::Tensor other = at::zeros({3}, type);
    const auto second = group->all_gather(other, at::full({1}, rank, type));
    first();
    second();
    EXPECT_TRUE(at::equal(whole, at::tensor({1, 1, 2, 2, 3, 3}).to(type)));
    EXPECT_TRUE(at::equal(other, at::arange(3, type)));
  }
  std::vector<double> numbers = {rank + 0.5, -rank - 0.0};
  group->sum(numbers);
  EXPECT_EQ(numbers, (std::vector<double>{4.5, -3}));
  numbers = {rank + 0.5, -1.0 * rank};
  group->largest(numbers);
  EXPECT_EQ(numbers, (std::vector<double>{2.5, 0}));
}

TEST(ProcessGroup, SaysWhereTheOthersWereAwaited) {
  const TempFolder folder;
  try {
    join_processes({.rank = 0,
                    .world = 2,
                    .file = (folder / "store").string(),
                    .interface = "lo",
                    .timeout = std::chrono::seconds(1)},
                   at::kCPU);
    FAIL();
  } catch (const ResourceError& error) {
    EXPECT_THAT(std::string(error.what()), testing::HasSubstr("process 0 of 2 did not meet the others at"));
  }
}

TEST(ProcessGroup, OneProcessCopies) {
  const auto group = single_process();
  const at::Tensor whole = at::arange(4, at::kFloat), share = at::zeros({4});
  group->reduce_scatter(share, whole)();
  EXPECT_TRUE(at::equal(share, whole));
  group->all_reduce(whole)();
  EXPECT_TRUE(at::equal(share, whole));
  EXPECT_EQ(join_processes({}, at::kCPU)->backend(), "none");
}

}  // namespace
}  // namespace cinch
