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

TEST(TokenizeCommand, KeepsTheDocuments) {
  const TempFolder folder;
  write_text(folder / "a.jsonl", "{\"text\": \"Once upon a time\"}\n{\"text\": \"The end.\"}\n");
  write_text(folder / "b.txt", "Tim had a ball.");
  write_text(folder / "c.ids", "5 6 2 7 2");
  const auto tokenized = [&](std::vector<std::string> more) {
    std::vector<std::string> words = {"tokenize", folder / "a.jsonl", folder / "b.txt", folder / "c.ids",
                                      folder / "ids.h5"};
    words.insert(words.end(), {"--model", stories_model(), "--json", "-q", "--force"});
    words.insert(words.end(), more.begin(), more.end());
    return run_cinch(words);
  };
  const Outcome plain = tokenized({});
  ASSERT_EQ(plain.code, 0) << plain.err;
  EXPECT_EQ(plain.json()["documents"], 4);
  const TokenDataset dataset = read_token_dataset(folder / "ids.h5");
  ASSERT_EQ(dataset.documents.size(), 4u);
  EXPECT_EQ(dataset.documents[3], static_cast<int64_t>(dataset.ids.size()) - 5);
  const Outcome marked = tokenized({"--bos", "1", "--eot", "2"});
  ASSERT_EQ(marked.code, 0) << marked.err;
  const TokenDataset with_marks = read_token_dataset(folder / "ids.h5");
  EXPECT_EQ(with_marks.ids.size(), dataset.ids.size() + 6);
  ASSERT_EQ(with_marks.documents.size(), 5u);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(with_marks.ids.at(static_cast<size_t>(with_marks.documents[i])), 1) << i;
  for (size_t i = 1; i < 5; ++i) EXPECT_EQ(with_marks.ids.at(static_cast<size_t>(with_marks.documents[i]) - 1), 2) << i;
  const Outcome beyond = tokenized({"--eot", "512"});
  EXPECT_EQ(beyond.code, 2);
  EXPECT_THAT(beyond.err, testing::HasSubstr("--eot: id 512 is not in the model's vocabulary of 512"));
  EXPECT_EQ(tokenized({"--eot", "-1"}).code, 2);
}

}  // namespace
}  // namespace cinch
