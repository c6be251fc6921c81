#include <gmock/gmock.h>

#include "core/files.h"
#include "tests/src/run_cinch.h"
#include "text/token_dataset.h"

namespace cinch {
namespace {

TEST(TokenizeCommand, WritesWhatEvalReads) {
  const TempFolder folder;
  const std::string out = (folder / "ids.h5").string(), text = repo_file("examples/stories/test.txt").string();
  const Outcome outcome = run_cinch({"tokenize", text, out, "--model", stories_model(), "--json", "-q"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const TokenDataset dataset = read_token_dataset(out);
  EXPECT_EQ(outcome.json()["tokens"], dataset.ids.size());
  EXPECT_EQ(dataset.vocab_size, 512);
  EXPECT_EQ(dataset.tokenizer_digest.size(), 64u);
  const auto perplexity = [&](const std::string& input) {
    return run_cinch(
               {"eval", stories_model(), "--text", input, "--max-tokens", "600", "--window", "100", "--json", "-q"})
        .json()["perplexity"]["value"];
  };
  EXPECT_EQ(perplexity(out), perplexity(text));
  const Outcome again = run_cinch({"tokenize", text, out, "--model", stories_model()});
  EXPECT_EQ(again.code, 2);
  EXPECT_THAT(again.err, testing::HasSubstr("exists already"));
}

}  // namespace
}  // namespace cinch
