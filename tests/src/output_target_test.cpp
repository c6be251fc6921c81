#include "src/output_target.h"

#include <gmock/gmock.h>

#include "core/errors.h"
#include "core/files.h"
#include "tests/src/run_cinch.h"

namespace cinch {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class OutputTarget : public testing::Test {
 protected:
  OutputTarget() {
    for (const char* name : {"model", "other", "photos", "empty"}) fs::create_directory(folder_ / name);
    write_text(folder_ / "model/config.json", "{}");
    write_text(folder_ / "other/config.json", "{}");
    write_text(folder_ / "photos/sea.jpg", "waves");
    write_text(folder_ / "file.gguf", "GGUF");
    fs::create_directory_symlink(folder_ / "model", folder_ / "link");
  }
  std::string fault(const std::string& model, const fs::path& out, bool force) const {
    try {
      check_output_target(folder_ / model, out, force);
    } catch (const UsageError& error) {
      EXPECT_NE(error.help(), "");
      return error.what();
    }
    return "fine";
  }

  TempFolder folder_;
};

TEST_F(OutputTarget, TheSourceIsNeverReplaced) {
  for (const bool force : {false, true}) {
    EXPECT_THAT(fault("model", folder_ / "model", force), HasSubstr("is the source model itself"));
    EXPECT_THAT(fault("model", folder_ / "model/", force), HasSubstr("is the source model itself"));
    EXPECT_THAT(fault("model", folder_ / "other/../model/.", force), HasSubstr("is the source model itself"));
    EXPECT_THAT(fault("model", folder_ / "link", force), HasSubstr("is the source model itself"));
    EXPECT_THAT(fault("link", folder_ / "model", force), HasSubstr("is the source model itself"));
    EXPECT_THAT(fault("model", folder_ / "model/new/deep", force), HasSubstr("lies inside the source model"));
    EXPECT_THAT(fault("model", folder_ / "link/config.json", force), HasSubstr("lies inside the source model"));
    EXPECT_THAT(fault("model", folder_.path(), force), HasSubstr("holds the source model"));
    EXPECT_THAT(fault("file.gguf", folder_.path(), force), HasSubstr("holds the source model"));
    EXPECT_THAT(fault("file.gguf", folder_ / "file.gguf", force), HasSubstr("is the source model itself"));
    EXPECT_THAT(fault("model", "/", force), HasSubstr("holds the source model"));
    EXPECT_EQ(fault("model", folder_ / "model2", force), "fine") << "a longer name is another place";
    EXPECT_EQ(fault("model", folder_ / "mode", force), "fine");
  }
}

TEST_F(OutputTarget, ForceReplacesModelsOnly) {
  EXPECT_THAT(fault("model", folder_ / "photos", true), HasSubstr("holds no model"));
  EXPECT_EQ(fault("model", folder_ / "other", true), "fine");
  EXPECT_EQ(fault("model", folder_ / "empty", true), "fine");
  EXPECT_EQ(fault("model", folder_ / "file.gguf", true), "fine");
  EXPECT_THAT(fault("model", "/dev/null", true), HasSubstr("neither a file nor a folder"));
}

TEST_F(OutputTarget, CommandsAsk) {
  const std::string model = (folder_ / "copy").string();
  fs::copy(tiny_model(), model);
  const auto content = [&] { return read_text(model + "/model.safetensors") + read_text(model + "/config.json"); };
  const std::string before = content();
  for (const std::vector<std::string>& command : std::vector<std::vector<std::string>>{
           {"export", model, model, "--format", "hf", "--force"},
           {"export", model, model, "--format", "gguf", "--force"},
           {"export", model, model + "/model.safetensors", "--format", "safetensors", "--force"},
           {"export", model, (folder_ / "photos").string(), "--format", "hf", "--force"},
           {"convert", model, model, "--to", "mqa", "--method", "mean", "--no-refit", "--force"},
           {"convert", model, folder_.path().string(), "--to", "mqa", "--method", "mean", "--no-refit", "--force"}}) {
    const Outcome outcome = run_cinch(command);
    EXPECT_EQ(outcome.code, 2) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr("error: OUT: "));
    EXPECT_EQ(content(), before);
  }
  EXPECT_EQ(read_text(folder_ / "photos/sea.jpg"), "waves");
}

}  // namespace
}  // namespace cinch
