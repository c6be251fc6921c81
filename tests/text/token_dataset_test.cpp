#include "text/token_dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <random>

#include "core/errors.h"
#include "core/files.h"
#include "core/hdf5.h"
#include "core/hdf5_seal.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

template <typename T>
std::string raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

std::string npy(const std::string& dict, const std::string& data) {
  const auto length = static_cast<uint16_t>(dict.size());
  return std::string("\x93NUMPY\1\0", 8) + raw<uint16_t>({length}) + dict + data;
}

std::string megatron_index(uint64_t sequences, const std::vector<int32_t>& lengths, char code,
                           const std::vector<int64_t>& documents = {0}) {
  const std::vector<int64_t> places(lengths.size(), 0);
  return std::string("MMIDIDX\0\0", 9) + raw<uint64_t>({1}) + code + raw<uint64_t>({sequences, documents.size()}) +
         raw(lengths) + raw(places) + raw(documents);
}

/// The message of the project's own error; anything else fails the test.
std::string refusal(const std::filesystem::path& path) {
  try {
    read_token_dataset(path);
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

std::vector<int64_t> ids_of(const std::filesystem::path& path) { return read_token_dataset(path).ids; }

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
  EXPECT_THROW(write_token_dataset(folder / "t.h5", {{1, -1}, 10, ""}), ConfigError);
  EXPECT_THROW(write_token_dataset(folder / "t.h5", {{1, 10}, 10, ""}), ConfigError);
}

TEST(TokenDataset, DocumentsSurviveWritingAndReading) {
  const TempFolder folder;
  const TokenDataset dataset{{1, 2, 3, 4, 5}, 9, "abc", {0, 2, 4}};
  write_token_dataset(folder / "t.h5", dataset);
  EXPECT_EQ(read_token_dataset(folder / "t.h5").documents, dataset.documents);
  EXPECT_EQ(read_token_dataset(folder / "t.h5").ids, dataset.ids);
  write_token_dataset(folder / "t.h5", {{1, 2}, 9, ""});
  EXPECT_THAT(read_token_dataset(folder / "t.h5").documents, ElementsAre());
  for (const std::vector<int64_t>& bad : std::vector<std::vector<int64_t>>{{1}, {0, 0}, {0, 3, 2}, {0, 5}, {-1, 2}})
    EXPECT_THROW(write_token_dataset(folder / "t.h5", {{1, 2, 3, 4, 5}, 9, "", bad}), ConfigError);
  EXPECT_THROW(write_token_dataset(folder / "t.h5", {{}, 9, "", {0}}), ConfigError);
}

TEST(TokenDataset, AppendingMovesTheDocuments) {
  TokenDataset all;
  append_tokens(all, {{1, 2, 3, 4, 5}, 9, "", {0, 2, 4}}, 1, 5);
  EXPECT_THAT(all.ids, ElementsAre(2, 3, 4, 5));
  EXPECT_THAT(all.documents, ElementsAre(0, 1, 3));
  append_tokens(all, {{7, 8}, 9, ""}, 0, 2);  // of which nothing is known
  append_tokens(all, {{7, 8}, 9, ""}, 1, 1);
  append_tokens(all, all, 0, 2);
  EXPECT_THAT(all.ids, ElementsAre(2, 3, 4, 5, 7, 8, 2, 3));
  EXPECT_THAT(all.documents, ElementsAre(0, 1, 3, 4, 6, 7));
  TokenDataset unknown{{1, 2}, 9, ""};
  append_tokens(unknown, unknown, 0, 1);
  EXPECT_THAT(unknown.documents, ElementsAre(0, 2));
}

TEST(TokenDataset, MarksTellTheDocuments) {
  const std::vector<int64_t> ids = {0, 5, 6, 0, 7, 0, 0, 8};
  EXPECT_THAT(documents_by_marks(ids, {.last = 0}), ElementsAre(0, 1, 4, 6, 7));
  EXPECT_THAT(documents_by_marks(ids, {.first = 0}), ElementsAre(0, 3, 5, 6));
  EXPECT_THAT(documents_by_marks({3, 5, 4, 3, 6, 4, 3}, {.first = 3, .last = 4}), ElementsAre(0, 3, 6));
  EXPECT_THAT(documents_by_marks(ids, {.last = 9}), ElementsAre(0));
  EXPECT_THAT(documents_by_marks({}, {.last = 9}), ElementsAre());
}

TEST(TokenDataset, TheOldFileStaysUntilTheNewOneIsComplete) {
  const TempFolder folder;
  const std::filesystem::path file = folder / "ids.h5";
  write_token_dataset(file, {.ids = {1, 2, 3}, .vocab_size = 9, .tokenizer_digest = ""});
  EXPECT_THROW(write_token_dataset(file, {.ids = {1, 9}, .vocab_size = 9, .tokenizer_digest = ""}), ConfigError);
  EXPECT_EQ(read_token_dataset(file).ids, (std::vector<int64_t>{1, 2, 3}));
  // What a killed writer left goes with the next one.
  write_text(folder / ".ids.h5.tmp-1-0", "half of a file");
  write_token_dataset(file, {.ids = {4}, .vocab_size = 9, .tokenizer_digest = ""});
  EXPECT_EQ(folder.names(), std::vector<std::string>{"ids.h5"});
  EXPECT_EQ(read_token_dataset(file).ids, std::vector<int64_t>{4});
  EXPECT_THROW(write_token_dataset(folder / "absent/ids.h5", {}), Error);
  std::filesystem::create_directory(folder / "taken.h5");
  EXPECT_THROW(write_token_dataset(folder / "taken.h5", {}), Error);
  EXPECT_EQ(folder.names(), (std::vector<std::string>{"ids.h5", "taken.h5"}));
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

/// A sealed file as another program could write it.
void write_foreign(const std::filesystem::path& path, Dtype dtype, const std::string& bytes,
                   const std::string& vocab_size, const std::vector<int64_t>& documents = {},
                   Dtype documents_dtype = Dtype::kI64) {
  Hdf5Writer writer(path);
  writer.create("tokens", dtype, {static_cast<int64_t>(bytes.size() / (dtype == Dtype::kU16 ? 2 : 4))});
  writer.write_rows("tokens", 0, std::as_bytes(std::span(bytes)));
  writer.set_attribute("tokens", "vocab_size", vocab_size);
  if (!documents.empty()) {
    writer.create("documents", documents_dtype, {static_cast<int64_t>(documents.size())});
    writer.write_rows("documents", 0, std::as_bytes(std::span(documents)));
  }
  writer.close();
  std::vector<DataExtent> extents;
  for (const Hdf5Dataset& stored : Hdf5Reader(path).datasets()) extents.push_back({stored.offset, stored.bytes});
  seal_hdf5(path, extents);
}

TEST(TokenDataset, HostileDocumentsAreNamed) {
  const TempFolder folder;
  const std::string three = raw<uint16_t>({1, 2, 3});
  const auto fault = [&](const std::vector<int64_t>& documents, Dtype dtype = Dtype::kI64) {
    write_foreign(folder / "t.h5", Dtype::kU16, three, "9", documents, dtype);
    return refusal(folder / "t.h5");
  };
  EXPECT_EQ(fault({0, 2}), "accepted");
  const auto says = [](const char* rule) { return testing::AllOf(HasSubstr("t.h5"), HasSubstr(rule)); };
  EXPECT_THAT(fault({1, 2}), says("document 0 begins at token 1"));
  EXPECT_THAT(fault({0, 2, 1}), says("document 2 begins at token 1"));
  EXPECT_THAT(fault({0, 1, 1}), says("document 2 begins at token 1"));
  EXPECT_THAT(fault({0, 3}), says("document 1 begins at token 3"));
  EXPECT_THAT(fault({0, INT64_MAX}), says("document 1 begins at token 9223372036854775807"));
  EXPECT_THAT(fault({-1, 1}), says("document 0 begins at token -1"));
  EXPECT_THAT(fault({INT64_MIN}), says("document 0 begins at token -9223372036854775808"));
  EXPECT_THAT(fault({0, 2}, Dtype::kU64), says("int64"));
}

// As a reader that knows of no documents does it: by the dataset's name.
TEST(TokenDataset, DocumentsAreADatasetBesideTheTokens) {
  const TempFolder folder;
  write_token_dataset(folder / "t.h5", {{1, 2, 3}, 10, "", {0, 2}});
  const std::vector<Hdf5Dataset> datasets = Hdf5Reader(folder / "t.h5").datasets();
  ASSERT_THAT(datasets, testing::SizeIs(2));
  for (const Hdf5Dataset& dataset : datasets) {
    EXPECT_EQ(dataset.shape, std::vector<int64_t>{dataset.name == "tokens" ? 3 : 2}) << dataset.name;
    // Damage in the documents is found by the seal, whatever numbers come of it.
    std::string bytes = read_text(folder / "t.h5");
    bytes[dataset.offset + (dataset.name == "tokens" ? 0 : 8)] ^= 3;
    write_text(folder / "damaged.h5", bytes);
    if (dataset.name == "documents") {
      EXPECT_THROW(read_token_dataset(folder / "damaged.h5"), CheckpointError);
    }
  }
}

TEST(TokenDataset, Hdf5FaultsAreNamed) {
  const TempFolder folder;
  const std::string three = raw<uint16_t>({1, 2, 9});
  for (const char* size : {"many", "", "-3", "1e3", "99999999999999999999999", "4294967297"}) {
    write_foreign(folder / "t.h5", Dtype::kU16, three, size);
    EXPECT_THAT(refusal(folder / "t.h5"), testing::AllOf(HasSubstr("t.h5"), HasSubstr("vocab_size"))) << size;
  }
  write_foreign(folder / "t.h5", Dtype::kU16, three, "9");
  EXPECT_THAT(refusal(folder / "t.h5"), HasSubstr("token 2 is 9, ids are from 0 to 8"));
  write_foreign(folder / "t.h5", Dtype::kF32, raw<float>({1, 2}), "9");
  EXPECT_THAT(refusal(folder / "t.h5"), HasSubstr("dtype"));
  write_foreign(folder / "t.h5", Dtype::kU32, raw<uint32_t>({1, 0x80000000u}), "0");
  EXPECT_THAT(refusal(folder / "t.h5"), HasSubstr("token 1 is 2147483648"));
}

TEST(TokenDataset, ReadsTheFlatFormatsOfOthers) {
  const TempFolder folder;
  const std::string bytes = raw<uint16_t>({7, 300, 65535});
  write_text(folder / "nanogpt.bin", bytes);
  EXPECT_THAT(ids_of(folder / "nanogpt.bin"), ElementsAre(7, 300, 65535));
  std::vector<int32_t> header(256);
  header = {20240520, 1, 2};
  header.resize(256);
  write_text(folder / "llmc.bin", raw(header) + bytes.substr(0, 4));
  EXPECT_THAT(ids_of(folder / "llmc.bin"), ElementsAre(7, 300));
  header[0] = 20240801;
  header[1] = 7;
  write_text(folder / "llama3.bin", raw(header) + raw<uint32_t>({7, 128255}));
  EXPECT_THAT(ids_of(folder / "llama3.bin"), ElementsAre(7, 128255));
  write_text(folder / "megatron.idx", megatron_index(2, {1, 2}, 8));
  write_text(folder / "megatron.bin", bytes);
  EXPECT_THAT(ids_of(folder / "megatron.bin"), ElementsAre(7, 300, 65535));
  EXPECT_THAT(read_token_dataset(folder / "megatron.bin").documents, ElementsAre(0));
  // Three documents of one, none and two sequences; one sequence is empty.
  write_text(folder / "megatron.idx", megatron_index(4, {1, 0, 1, 1}, 8, {0, 1, 1, 4}));
  EXPECT_THAT(read_token_dataset(folder / "megatron.bin").documents, ElementsAre(0, 1));
  const std::string dict = "{'descr': '<i8', 'fortran_order': False, 'shape': (2,), }\n";
  write_text(folder / "a.npy", npy(dict, raw<int64_t>({5, 131071})));
  EXPECT_THAT(ids_of(folder / "a.npy"), ElementsAre(5, 131071));
}

TEST(TokenDataset, FlatFaultsAreNamed) {
  const TempFolder folder;
  const auto expect = [&](const char* name, const std::string& bytes, const char* rule) {
    write_text(folder / name, bytes);
    EXPECT_THAT(refusal(folder / name), testing::AllOf(HasSubstr(name), HasSubstr(rule)));
  };
  const std::string two = raw<uint16_t>({1, 2});
  const auto dict = [](const std::string& descr, const std::string& order, const std::string& shape) {
    return "{'descr': " + descr + ", 'fortran_order': " + order + ", 'shape': " + shape + ", }\n";
  };
  expect("a.npy", "no numpy at all", "not a .npy file");
  expect("a.npy", npy(dict("'<u2'", "False", "(3,)"), two), "claims 3 elements");
  expect("a.npy", npy(dict("'<u2'", "False", "(1,)"), two), "claims 1 elements");
  expect("a.npy", npy(dict("'<u2'", "False", "(9223372036854775807, 3)"), two), "shape");
  expect("a.npy", npy(dict("'<u2'", "False", "(99999999999999999999999,)"), two), "shape");
  expect("a.npy", npy(dict("'<u2'", "False", "(2, x)"), two), "shape");
  expect("a.npy", npy(dict("'<u2'", "True", "(2,)"), two), "Fortran");
  expect("a.npy", npy(dict("[('a', '<u2')]", "False", "(2,)"), two), "dtype");
  expect("a.npy", npy(dict("'<f4'", "False", "(1,)"), two), "dtype");
  expect("a.npy", npy(dict("'<i4'", "False", "(1,)"), raw<int32_t>({-5})), "token 0 is -5");
  expect("a.npy", std::string("\x93NUMPY\2\0\xFF\xFF\xFF\xFF", 12), "longer than the file");
  expect("a.bin", "odd", "uint16");
  std::vector<int32_t> header(256);
  header[0] = 20240520;
  header[1] = 1;
  header[2] = 2;
  expect("b.bin", raw(header) + two.substr(0, 2), "claims 2 tokens");
  header[2] = -1;
  expect("b.bin", raw(header) + two, "claims -1 tokens");
  header[1] = 5;
  expect("b.bin", raw(header) + two, "version 5");
  expect("words.ids", "1 2 three", "\"three\" at byte 4");
  expect("words.ids", "1 99999999999999999999999999", "is not a token id");
  expect("words.ids", "1 4294967296", "token 1 is 4294967296");
  write_text(folder / "c.bin", two);
  const auto expect_index = [&](const std::string& bytes, const char* rule) {
    write_text(folder / "c.idx", bytes);
    EXPECT_THAT(refusal(folder / "c.bin"), testing::AllOf(HasSubstr("/c."), HasSubstr(rule)));
  };
  expect_index("MMID", "not a Megatron index");
  expect_index(megatron_index(uint64_t{1} << 62, {2}, 8), "hold fewer");
  expect_index(megatron_index(1, {3}, 8), "claims 3 tokens");
  expect_index(megatron_index(1, {-2}, 8), "negative");
  expect_index(megatron_index(1, {2}, 7), "type code 7");
  expect_index(megatron_index(2, {1, 1}, 8, {1, 2}), "document 0 begins with sequence 1");
  expect_index(megatron_index(2, {1, 1}, 8, {0, 2, 1}), "document 2 begins with sequence 1");
  expect_index(megatron_index(2, {1, 1}, 8, {0, -1}), "document 1 begins with sequence 18446744073709551615");
  EXPECT_THROW(read_token_dataset(folder / "missing.npy"), Error);
}

TEST(TokenDataset, NoDamageLeadsOutOfTheProjectsErrors) {
  const TempFolder folder;
  const std::string dict = "{'descr': '<u2', 'fortran_order': False, 'shape': (3,), }\n";
  const std::string tokens = raw<uint16_t>({7, 300, 65535});
  write_text(folder / "m.bin", tokens);
  write_token_dataset(folder / "t.h5", {{1, 2, 3}, 10, "abc", {0, 2}});
  const std::vector<std::pair<const char*, std::string>> sound = {{"a.npy", npy(dict, tokens)},
                                                                  {"m.idx", megatron_index(2, {1, 2}, 8)},
                                                                  {"w.ids", "1, 2 33\n"},
                                                                  {"t.h5", read_text(folder / "t.h5")}};
  std::mt19937 chance(1);
  for (const auto& [name, bytes] : sound) {
    for (unsigned round = 0; round < 150; ++round) {
      std::string damaged = bytes.substr(0, round % 3 == 0 ? chance() % bytes.size() : bytes.size());
      for (int flip = 0; flip < 2 && !damaged.empty(); ++flip) damaged[chance() % damaged.size()] ^= 1 << chance() % 8;
      std::ofstream(folder / name, std::ios::binary) << damaged;  // write_text waits for the disk
      refusal(std::string_view(name) == "m.idx" ? folder / "m.bin" : folder / name);
    }
  }
}

}  // namespace
}  // namespace cinch
