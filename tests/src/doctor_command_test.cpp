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

TEST(DoctorCommand, SaysWhichKernelsRunForAModel) {
  const Outcome outcome = run_cinch({"doctor", "--kernels", stories_model(), "--dtype", "f32", "--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Json layers = outcome.json()["attention_kernels"];
  ASSERT_EQ(layers.size(), 1u);  // all are alike
  EXPECT_EQ(layers[0]["layers"], "0-4");
  EXPECT_EQ(layers[0]["attention"], "8 heads on 4 KV heads of 8");
  for (const Json& work : layers[0]["works"]) {
    EXPECT_EQ(work["kernel"], "sdpa") << work["work"];
    EXPECT_EQ(work["cannot"]["flash"], "misses CPU");
  }
  EXPECT_THAT(layers[0]["works"].back()["cannot"]["mma, sm90"].get<std::string>(),
              testing::HasSubstr("no decode kernels"));
  EXPECT_THAT(run_cinch({"doctor", "--kernels", stories_model()}).out,
              testing::ContainsRegex("layers 0-4: 8 heads on 4 KV heads of 8\n  training +sdpa\n +flash misses CPU"));
}

TEST(DoctorCommand, RefusesWhatItCannotAsk) {
  EXPECT_EQ(run_cinch({"doctor", "--kernels", "nowhere"}).code, 2);
  EXPECT_EQ(run_cinch({"doctor", "--dtype", "f8"}).code, 2);
  EXPECT_EQ(run_cinch({"doctor", "--device", "tpu"}).code, 2);
  EXPECT_EQ(run_cinch({"doctor", "--kv-bits", "5"}).code, 2);
}

}  // namespace
}  // namespace cinch
