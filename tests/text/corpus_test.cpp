#include "text/corpus.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/errors.h"
#include "core/files.h"
#include "tests/support/assets.h"
#include "text/token_dataset.h"

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

TEST(Corpus, DisjointWindowsDropTheRemainder) {
  std::vector<int64_t> ids(25, 7);
  EXPECT_THAT(disjoint_windows(ids, 10).windows, SizeIs(2));
  EXPECT_THAT(disjoint_windows(ids, 26).windows, SizeIs(0));
}

TEST(TokenDataset, SurvivesWritingAndReading) {
  const TempFolder folder;
  for (const int64_t vocab : {int64_t{300}, int64_t{200000}}) {
    const TokenDataset dataset{{0, 5, 299, vocab - 1, 1}, vocab, "abc"};
    write_token_dataset(folder / "t.h5", dataset);
    const TokenDataset again = read_token_dataset(folder / "t.h5");
    EXPECT_EQ(again.ids, dataset.ids);
    EXPECT_EQ(again.vocab_size, vocab);
    EXPECT_EQ(again.tokenizer_digest, "abc");
  }
}

TEST(TokenDataset, ADamagedFileIsRefused) {
  const TempFolder folder;
  write_token_dataset(folder / "t.h5", {{1, 2, 3}, 10, ""});
  const std::string bytes = read_text(folder / "t.h5");
  write_text(folder / "short.h5", std::string_view(bytes).substr(0, bytes.size() - 7));
  EXPECT_THROW(read_token_dataset(folder / "short.h5"), CheckpointError);
  std::string flipped = bytes;
  flipped[9] ^= 1;
  write_text(folder / "flip.h5", flipped);
  EXPECT_THROW(read_token_dataset(folder / "flip.h5"), CheckpointError);
}

TEST(TokenDataset, ReadsTheFlatFormatsOfOthers) {
  const TempFolder folder;
  const uint16_t raw[3] = {7, 300, 65535};
  const std::string_view bytes(reinterpret_cast<const char*>(raw), sizeof(raw));
  write_text(folder / "nanogpt.bin", bytes);
  EXPECT_THAT(read_token_file(folder / "nanogpt.bin"), ElementsAre(7, 300, 65535));
  std::string llmc(1024, '\0');
  const int32_t header[3] = {20240520, 1, 2};
  llmc.replace(0, sizeof(header), reinterpret_cast<const char*>(header), sizeof(header));
  write_text(folder / "llmc.bin", llmc + std::string(bytes.substr(0, 4)));
  EXPECT_THAT(read_token_file(folder / "llmc.bin"), ElementsAre(7, 300));
  write_text(folder / "cut.bin", llmc + std::string(bytes.substr(0, 2)));
  EXPECT_THROW(read_token_file(folder / "cut.bin"), ConfigError);
  std::string index = std::string("MMIDIDX\0\0", 9) + std::string("\1\0\0\0\0\0\0\0", 8) + '\x08';
  write_text(folder / "megatron.idx", index);
  write_text(folder / "megatron.bin", bytes);
  EXPECT_THAT(read_token_file(folder / "megatron.bin"), ElementsAre(7, 300, 65535));
  write_text(folder / "words.ids", "1 2 three");
  EXPECT_THROW(read_token_file(folder / "words.ids"), ConfigError);
}

}  // namespace
}  // namespace cinch
