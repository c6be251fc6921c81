#include "train/token_samples.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "core/errors.h"
#include "train/linear_cross_entropy_kd.h"

namespace cinch {
namespace {

using testing::HasSubstr;

std::vector<int64_t> counted(int64_t tokens) {
  std::vector<int64_t> ids(static_cast<size_t>(tokens));
  std::iota(ids.begin(), ids.end(), 100);
  return ids;
}

TEST(TokenSamples, WithoutDocumentsEveryTokenHasATarget) {
  for (const std::vector<int64_t>& documents : std::vector<std::vector<int64_t>>{{}, {0}}) {
    const TokenSamples samples(counted(31), 10, 3, documents);
    EXPECT_EQ(samples.samples(), 3);
    const TokenSamples::Batch batch = samples.batch(0, 3);
    EXPECT_FALSE(batch.documents.defined());
    EXPECT_TRUE(at::equal(batch.targets, batch.ids + 1));
    EXPECT_EQ(samples.targets(0, 3), 30);
    EXPECT_EQ(samples.digest(), TokenSamples(counted(31), 10, 3).digest());
  }
}

/// By the rule alone, token by token.
void expect_rule(const TokenSamples& samples, const std::vector<int64_t>& documents, int64_t position, int64_t count) {
  const auto document_of = [&](int64_t token) {
    return *std::prev(std::upper_bound(documents.begin(), documents.end(), token));
  };
  const TokenSamples::Batch batch = samples.batch(position, count);
  int64_t valid = 0;
  for (int64_t b = 0; b < count; ++b) {
    const int64_t first = batch.ids[b][0].item<int64_t>() - 100;
    for (int64_t t = 0; t < samples.length(); ++t) {
      const int64_t token = first + t;
      EXPECT_EQ(batch.ids[b][t].item<int64_t>(), 100 + token);
      const bool has_target = document_of(token + 1) == document_of(token);
      valid += has_target ? 1 : 0;
      EXPECT_EQ(batch.targets[b][t].item<int64_t>(), has_target ? 101 + token : kIgnoredTarget) << b << " " << t;
      EXPECT_EQ(batch.documents[b][t].item<int64_t>(), std::max<int64_t>(0, document_of(token) - first));
    }
  }
  EXPECT_EQ(samples.targets(position, count), valid);
}

TEST(TokenSamples, DocumentsBoundTheTargets) {
  // Windows of 10: one whole document and a boundary at its end; single tokens; a document over three windows.
  const std::vector<int64_t> documents = {0, 10, 13, 14, 15, 19, 20, 47, 50, 60};
  const TokenSamples samples(counted(61), 10, 7, documents);
  ASSERT_EQ(samples.samples(), 6);
  expect_rule(samples, documents, 0, 6);
  expect_rule(samples, documents, 4, 5);  // into the next epoch
  EXPECT_EQ(samples.targets(0, 6), 60 - 9);
  EXPECT_EQ(samples.targets(0, 0), 0);
  std::vector<int64_t> all(61);
  std::iota(all.begin(), all.end(), 0);
  const TokenSamples none(counted(61), 10, 7, all);
  expect_rule(none, all, 0, 6);
  EXPECT_EQ(none.targets(0, 6), 0);
}

TEST(TokenSamples, OtherDocumentsAreOtherData) {
  const TokenSamples a(counted(31), 10, 3), b(counted(31), 10, 3, {0, 4}), c(counted(31), 10, 3, {0, 5});
  EXPECT_NE(a.digest(), b.digest());
  EXPECT_NE(b.digest(), c.digest());
}

TEST(TokenSamples, FaultsAreNamed) {
  EXPECT_THROW(TokenSamples(counted(10), 10, 0), UsageError);
  EXPECT_THROW(TokenSamples(counted(10), 0, 0), UsageError);
  EXPECT_THROW(TokenSamples({}, 5, 0), UsageError);
  try {
    TokenSamples(counted(31), 10, 0, {0, 31});
    FAIL() << "accepted";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), HasSubstr("document 1 begins at token 31"));
  }
}

}  // namespace
}  // namespace cinch
