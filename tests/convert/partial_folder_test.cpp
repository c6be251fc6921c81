#include "convert/partial_folder.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/errors.h"
#include "core/files.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

using Start = PartialFolder::Start;
using testing::ElementsAre;
using testing::HasSubstr;

const Json kIdentity = {{"recipe", {{"method", "mean"}, {"seed", 0}}}, {"threads", 1}};

TEST(IdentityDifferences, NameEveryKeyThatChanged) {
  const Json now = {{"recipe", {{"method", "first"}, {"seed", 0}}}, {"threads", 2}, {"device", "cpu"}};
  EXPECT_THAT(identity_differences(kIdentity, now),
              ElementsAre("device: was absent, now \"cpu\"", "recipe.method: was \"mean\", now \"first\"",
                          "threads: was 1, now 2"));
  EXPECT_TRUE(identity_differences(kIdentity, kIdentity).empty());
}

TEST(PartialFolderTest, StoresLayersAndResumes) {
  TempFolder folder;
  const auto output = folder / "out";
  const at::Tensor weight = at::randn({3, 5}).to(at::kBFloat16);
  {
    PartialFolder partial(output, kIdentity, Start::fresh);
    EXPECT_EQ(partial.resumed_layers(), 0);
    partial.store_layer(0, {{"k", {Dtype::kBF16, weight}}}, {{"layer", 0}, {"error", 0.25}});
  }
  EXPECT_EQ(PartialFolder::recorded_identity(output), kIdentity);
  EXPECT_THROW(PartialFolder(output, kIdentity, Start::fresh), UsageError);
  PartialFolder again(output, kIdentity, Start::resume);
  EXPECT_EQ(again.resumed_layers(), 1);
  const auto layer = again.load_layer(0);
  EXPECT_TRUE(at::equal(layer.tensors.at("k"), weight));
  EXPECT_EQ(layer.report["error"], 0.25);
  again.discard();
  EXPECT_FALSE(std::filesystem::exists(PartialFolder::path_for(output)));
}

TEST(PartialFolderTest, AChangedIdentityIsRefusedByName) {
  TempFolder folder;
  { PartialFolder partial(folder / "out", kIdentity, Start::fresh); }
  Json changed = kIdentity;
  changed["recipe"]["seed"] = 5;
  try {
    PartialFolder partial(folder / "out", changed, Start::resume);
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), HasSubstr("recipe.seed: was 0, now 5"));
  }
  PartialFolder replaced(folder / "out", changed, Start::replace);
  EXPECT_EQ(PartialFolder::recorded_identity(folder / "out"), changed);
}

TEST(PartialFolderTest, AFolderWithoutStateIsNothing) {
  TempFolder folder;
  const auto partial_path = PartialFolder::path_for(folder / "out");
  std::filesystem::create_directories(partial_path / "layers");
  write_text(partial_path / "layers" / "00000.safetensors", "garbage of a run killed while it started");
  PartialFolder partial(folder / "out", kIdentity, Start::fresh);
  EXPECT_EQ(partial.resumed_layers(), 0);
  EXPECT_FALSE(partial.has_layer(0));
}

TEST(PartialFolderTest, OneProcessAtATime) {
  TempFolder folder;
  PartialFolder first(folder / "out", kIdentity, Start::fresh);
  EXPECT_THROW(PartialFolder(folder / "out", kIdentity, Start::resume), Error);
}

TEST(PartialFolderTest, PublishRenamesOrExchanges) {
  TempFolder folder;
  const auto output = folder / "out";
  for (const char* content : {"one", "two"}) {
    PartialFolder partial(output, kIdentity, Start::replace);
    const auto result = partial.prepare_result();
    std::filesystem::create_directory(result);
    write_text(result / "file", content);
    EXPECT_FALSE(PartialFolder::was_published(output));
    partial.publish();
    EXPECT_EQ(read_text(output / "file"), content);
    EXPECT_TRUE(PartialFolder::was_published(output));
    partial.discard();
  }
  EXPECT_FALSE(PartialFolder::was_published(output));
}

}  // namespace
}  // namespace cinch
