#include "convert/window_roles.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace cinch {
namespace {

TEST(WindowRoles, EveryWindowHasOneRole) {
  for (const size_t windows : {1, 2, 3, 4, 7, 8, 16, 31, 36, 500}) {
    const WindowRoles roles = choose_roles(std::vector<size_t>(windows, 0));
    std::multiset<int64_t> all(roles.fit.begin(), roles.fit.end());
    all.insert(roles.validation.begin(), roles.validation.end());
    all.insert(roles.held_out.begin(), roles.held_out.end());
    ASSERT_EQ(all.size(), windows);
    EXPECT_EQ(std::set<int64_t>(all.begin(), all.end()).size(), windows);
    EXPECT_EQ(*all.begin(), 0);
    EXPECT_EQ(*all.rbegin(), static_cast<int64_t>(windows) - 1);
    EXPECT_FALSE(roles.fit.empty());
  }
}

TEST(WindowRoles, Counts) {
  const WindowRoles roles = choose_roles(std::vector<size_t>(36, 0));
  EXPECT_THAT(roles.held_out, testing::ElementsAre(4, 13, 22, 31));
  EXPECT_EQ(roles.validation.size(), 8u);
  EXPECT_EQ(roles.fit.size(), 24u);
  const WindowRoles few = choose_roles(std::vector<size_t>(7, 0));
  EXPECT_TRUE(few.held_out.empty());
  EXPECT_EQ(few.validation.size(), 1u);
}

TEST(WindowRoles, EveryFileOfAMixtureTakesPart) {
  for (const size_t files : {1, 2, 3, 4, 5, 7, 8}) {
    std::vector<size_t> sources;
    for (size_t w = 0; w < 36; ++w) sources.push_back(w % files);
    const WindowRoles roles = choose_roles(sources);
    const auto files_in = [&](const std::vector<int64_t>& windows) {
      std::set<size_t> seen;
      for (const int64_t window : windows) seen.insert(sources.at(static_cast<size_t>(window)));
      return seen.size();
    };
    EXPECT_EQ(files_in(roles.held_out), std::min<size_t>(files, 4));
    EXPECT_EQ(files_in(roles.validation), files);
    EXPECT_EQ(files_in(roles.fit), files);
  }
}

TEST(WindowRoles, MeasuredOnTheMostIndependentWindows) {
  EXPECT_EQ((WindowRoles{{0}, {1}, {2}}.measured()), std::vector<int64_t>{2});
  EXPECT_EQ((WindowRoles{{0}, {1}, {}}.measured()), std::vector<int64_t>{1});
  EXPECT_EQ((WindowRoles{{0}, {}, {}}.measured()), std::vector<int64_t>{0});
  EXPECT_EQ((WindowRoles{{0}, {}, {2}}.judged()), std::vector<int64_t>{0});
}

}  // namespace
}  // namespace cinch
