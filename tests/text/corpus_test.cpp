#include "text/corpus.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/errors.h"
#include "core/files.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;

std::unique_ptr<Tokenizer> tokenizer() {
  return load_tokenizer_json(repo_file("tests/golden/text/gpt2.tokenizer.json"));
}

TEST(Corpus, ReadsTextJsonlAndFolders) {
  const TempFolder folder;
  write_text(folder / "b.txt", "second");
  write_text(folder / "a.txt", "first");
  write_text(folder / "c.jsonl", "{\"text\": \"one\"}\n\n{\"text\": \"two\", \"x\": 1}\n");
  EXPECT_THAT(read_documents(folder / "a.txt"), ElementsAre("first"));
  EXPECT_THAT(read_documents(folder.path()), ElementsAre("first", "second"));
  EXPECT_THAT(read_documents(folder / "c.jsonl"), ElementsAre("one", "two"));
}

TEST(Corpus, ABadJsonlLineIsNamed) {
  const TempFolder folder;
  write_text(folder / "c.jsonl", "{\"text\": \"one\"}\n{\"body\": \"two\"}\n");
  try {
    read_documents(folder / "c.jsonl");
    FAIL() << "accepted";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), HasSubstr("c.jsonl:2"));
  }
}

TEST(Corpus, SpecsHaveWeights) {
  const TempFolder folder;
  write_text(folder / "a.txt", "x");
  const std::string path = (folder / "a.txt").string();
  EXPECT_EQ(parse_corpus_spec(path).weight, 1.0);
  EXPECT_EQ(parse_corpus_spec(path + ":2.5").weight, 2.5);
  EXPECT_EQ(parse_corpus_spec(path + ":2.5").path, path);
  EXPECT_THROW(parse_corpus_spec(path + ":-1"), UsageError);
  EXPECT_THROW(parse_corpus_spec(path + ":two"), UsageError);
  EXPECT_THROW(parse_corpus_spec((folder / "missing.txt").string()), UsageError);
}

TEST(Corpus, CalibrationWindowsFollowTheWeightsAndSpreadOverTheSource) {
  const TempFolder folder;
  std::string ids_a, ids_b;
  for (int i = 0; i < 100; ++i) ids_a += std::to_string(i) + " ";
  for (int i = 200; i < 300; ++i) ids_b += std::to_string(i) + "\n";
  write_text(folder / "a.ids", ids_a);
  write_text(folder / "b.ids", ids_b);
  const auto known = tokenizer();
  const TokenWindows windows = calibration_windows(*known, {{folder / "a.ids", 3.0}, {folder / "b.ids", 1.0}}, 4, 10);
  ASSERT_THAT(windows.windows, SizeIs(4));
  std::vector<int64_t> starts;
  for (const auto& window : windows.windows) {
    ASSERT_THAT(window, SizeIs(10));
    starts.push_back(window.front());
  }
  EXPECT_THAT(starts, testing::UnorderedElementsAre(0, 30, 60, 200));
  EXPECT_THROW(calibration_windows(*known, {{folder / "a.ids", 1.0}}, 11, 10), ConfigError);
}

TEST(Corpus, PreTokenisedIdsMustFitTheTokenizer) {
  const TempFolder folder;
  write_text(folder / "a.ids", "1 2 999999");
  EXPECT_THROW(tokenize_corpus(*tokenizer(), folder / "a.ids"), ConfigError);
}

TEST(Corpus, DocumentsAreTokenisedOneByOne) {
  const TempFolder folder;
  write_text(folder / "c.jsonl", "{\"text\": \"one two\"}\n{\"text\": \"\"}\n{\"text\": \"three\"}\n");
  write_text(folder / "a.txt", "one two");
  const auto known = tokenizer();
  const auto first = known->encode("one two", false), second = known->encode("three", false);
  std::vector<int64_t> expected = first;
  expected.insert(expected.end(), second.begin(), second.end());
  const TokenDataset plain = tokenize_documents(*known, folder / "c.jsonl");
  EXPECT_EQ(plain.ids, expected);
  EXPECT_THAT(plain.documents, ElementsAre(0, first.size()));
  EXPECT_EQ(plain.vocab_size, known->vocab_size());
  const TokenDataset marked = tokenize_documents(*known, folder / "c.jsonl", {.first = 3, .last = 4});
  EXPECT_THAT(marked.ids, SizeIs(expected.size() + 4));
  EXPECT_EQ(marked.ids.front(), 3);
  EXPECT_EQ(marked.ids.back(), 4);
  EXPECT_THAT(marked.documents, ElementsAre(0, first.size() + 2));
  EXPECT_EQ(documents_by_marks(marked.ids, {.last = 4}), marked.documents);
  const TokenDataset text = tokenize_documents(*known, folder / "a.txt");
  EXPECT_EQ(text.ids, tokenize_corpus(*known, folder / "a.txt"));
  EXPECT_THAT(text.documents, ElementsAre(0));
  write_text(folder / "b.ids", "1 2 4 5");
  EXPECT_THAT(tokenize_documents(*known, folder / "b.ids").documents, ElementsAre());
  EXPECT_THAT(tokenize_documents(*known, folder / "b.ids", {.last = 4}).documents, ElementsAre(0, 3));
  write_token_dataset(folder / "d.h5", {{1, 4, 5}, 9, "", {0, 1}});
  EXPECT_THAT(tokenize_documents(*known, folder / "d.h5", {.last = 4}).documents, ElementsAre(0, 1)) << "its own";
  write_text(folder / "far.ids", "1 999999");
  EXPECT_THROW(tokenize_documents(*known, folder / "far.ids"), ConfigError);
}

TEST(Corpus, DisjointWindowsDropTheRemainder) {
  EXPECT_THROW(disjoint_windows({1, 2}, 0), UsageError);
  std::vector<int64_t> ids(25, 7);
  EXPECT_THAT(disjoint_windows(ids, 10).windows, SizeIs(2));
  EXPECT_THAT(disjoint_windows(ids, 26).windows, SizeIs(0));
}

}  // namespace
}  // namespace cinch
