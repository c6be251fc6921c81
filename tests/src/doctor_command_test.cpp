#include <gmock/gmock.h>

#include "tests/src/run_cinch.h"

namespace cinch {
namespace {

TEST(DoctorCommand, NamesTheMachine) {
  const Outcome outcome = run_cinch({"doctor", "--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Json json = outcome.json();
  EXPECT_GT(json["memory"]["total_bytes"].get<uint64_t>(), 0u);
  EXPECT_GT(json["disk"]["free_bytes"].get<uint64_t>(), 0u);
  EXPECT_GE(json["cpu"]["threads"].get<int>(), 1);
  EXPECT_THAT(json["libraries"]["libtorch"].get<std::string>(), testing::StartsWith("2."));
  EXPECT_FALSE(json["attention_kernels"].empty());
  EXPECT_TRUE(json["cuda"]["devices"].get<int>() > 0 || json["cuda"].contains("missing"));
  EXPECT_THAT(run_cinch({"doctor"}).out, testing::HasSubstr("attention kernels"));
}

}  // namespace
}  // namespace cinch
