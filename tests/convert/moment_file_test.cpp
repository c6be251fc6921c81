#include "convert/moment_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "core/errors.h"
#include "core/files.h"
#include "tests/convert/latent_case.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

using testing::HasSubstr;

class MomentFileTest : public testing::Test {
 protected:
  MomentFileTest() {
    at::manual_seed(3);
    const LatentCase c{.name = "plain"};
    specs_ = {c.spec(), c.spec()};
    layer_ = std::make_unique<LatentLayer>(c, c.random_weights(), at::randn({3, 24, c.hidden()}, at::kDouble));
    MomentWriter writer(path_, identity_, {1}, specs_, 3, 24);
    writer.store(1, layer_->moments);
    writer.commit();
  }
  TempFolder folder_;
  std::filesystem::path path_ = folder_ / "moments.h5";
  Json identity_ = {{"version", 1}, {"source", {{"a", 1}}}, {"calibration", {{"windows", 3}}}};
  std::vector<AttentionSpec> specs_;
  std::unique_ptr<LatentLayer> layer_;
};

TEST_F(MomentFileTest, ReadsBackEveryNumber) {
  const MomentFile file(path_, identity_);
  EXPECT_TRUE(file.has_layer(1));
  EXPECT_FALSE(file.has_layer(0));
  const LatentMoments found = file.load(1), &meant = layer_->moments;
  for (const auto& [a, b] : {std::pair{found.joint, meant.joint},
                             {found.joint_mean, meant.joint_mean},
                             {found.first_rows, meant.first_rows},
                             {found.query, meant.query},
                             {found.output, meant.output},
                             {found.output_mean, meant.output_mean},
                             {found.lags, meant.lags}})
    EXPECT_TRUE(at::equal(a, b));
  EXPECT_EQ(found.output_energy, meant.output_energy);
  EXPECT_EQ(found.residual_energy, meant.residual_energy);
  EXPECT_EQ(found.window, 24);
}

TEST_F(MomentFileTest, OnlyTheKeysOfTheIdentityAreCompared) {
  EXPECT_NO_THROW(MomentFile(path_, {{"source", {{"a", 1}}}}));
  try {
    MomentFile(path_, {{"source", {{"a", 2}}}});
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), HasSubstr("measured differently"));
    EXPECT_THAT(error.what(), HasSubstr("source"));
  }
}

TEST_F(MomentFileTest, ChangedBytesAreNoticed) {
  const auto size = static_cast<std::streamoff>(std::filesystem::file_size(path_));
  std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
  // Contiguous datasets follow the headers: the joint moment is by far the largest.
  file.seekp(size / 2);
  file.put('\x5a');
  file.close();
  const MomentFile damaged(path_, identity_);
  EXPECT_THROW(damaged.load(1), CheckpointError);
}

TEST_F(MomentFileTest, OtherFilesAreNoMoments) {
  write_text(folder_ / "text.h5", "no such thing");
  EXPECT_ANY_THROW(MomentFile(folder_ / "text.h5", identity_));
}

TEST_F(MomentFileTest, WithoutCommitNothingIsThere) {
  { MomentWriter writer(folder_ / "other.h5", identity_, {0, 1}, specs_, 3, 24); }
  EXPECT_FALSE(std::filesystem::exists(folder_ / "other.h5"));
  EXPECT_EQ(moment_bytes({1}, specs_, 3, 24), 8u * (64 * 64 + 64 + 3 * 64 + 2 * 6 * 16 * 16 + 6 * 16 + 6 * 24 + 2));
}

}  // namespace
}  // namespace cinch
