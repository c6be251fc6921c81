#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "core/digest.h"
#include "core/errors.h"
#include "core/files.h"
#include "core/json.h"
#include "tests/support/assets.h"
#include "text/tokenizer.h"
#include "text/tokenizer_json.h"

namespace cinch {
namespace {

using testing::HasSubstr;

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return bytes;
}

/// What differs from a row of tests/golden/text/cases.py, or nothing.
std::string difference(const Tokenizer& tokenizer, const JsonObject& row) {
  std::vector<int64_t> ids = row.integers("ids"), with_special = ids;
  std::string text;
  if (row.has("hex")) {
    text = from_hex(row.string("hex"));
    ids = tokenizer.encode(text, false);
    with_special = tokenizer.encode(text, true);
    if (ids != row.integers("ids"))
      return fmt::format("{}: ids [{}], expected {}", row.string("hex"), fmt::join(ids, ","),
                         row.json().at("ids").dump());
    if (with_special != row.integers("with_special"))
      return fmt::format("{}: with special tokens [{}]", row.string("hex"), fmt::join(with_special, ","));
  }
  const std::string decoded = tokenizer.decode(ids, false), skipped = tokenizer.decode(with_special, true);
  if (decoded != row.string("decoded"))
    return fmt::format("{} decodes to \"{}\", expected \"{}\"", row.json().at("ids").dump(), decoded,
                       row.string("decoded"));
  if (skipped != row.string("skipped"))
    return fmt::format("{} without special tokens decodes to \"{}\"", row.json().at("ids").dump(), skipped);
  return "";
}

class GoldenTokenizer : public testing::TestWithParam<const char*> {};

TEST_P(GoldenTokenizer, GivesTheIdsAndTextOfHuggingFace) {
  const std::string name = GetParam();
  const auto tokenizer = load_tokenizer_json(repo_file("tests/golden/text/" + name + ".tokenizer.json"));
  const JsonObject golden = JsonObject::from_file(repo_file("tests/golden/text/cases.json"));
  const auto cases = golden.objects(name);
  ASSERT_GE(cases.size(), 20u);
  for (const JsonObject& row : cases) EXPECT_EQ(difference(*tokenizer, row), "") << name;
}

INSTANTIATE_TEST_SUITE_P(Components, GoldenTokenizer,
                         testing::Values("gpt2", "llama3", "qwen2", "smollm", "llama2", "mistral", "gemma", "phi3"),
                         [](const auto& param_info) { return std::string(param_info.param); });
INSTANTIATE_TEST_SUITE_P(Rules, GoldenTokenizer,
                         testing::Values("split_isolated", "split_isolated_inverted", "split_removed",
                                         "split_removed_inverted", "split_contiguous", "split_contiguous_inverted",
                                         "split_merged_with_previous", "split_merged_with_previous_inverted",
                                         "split_merged_with_next", "split_merged_with_next_inverted",
                                         "split_empty_matches", "split_word", "metaspace_always", "metaspace_first",
                                         "metaspace_never", "unknown_fused", "unknown_apart", "unknown_bytes", "strip",
                                         "added_flags", "roberta", "bert_processing", "template_both_ends",
                                         "published_0", "published_1", "published_2", "published_3", "string_merges",
                                         "random_merges", "no_decoder"),
                         [](const auto& param_info) { return std::string(param_info.param); });

/// Run by tests/golden/text/differential.py, which names the folder of its random cases.
TEST(SlowTokenizer, AgreesOnTheCasesOfTheDifferentialScript) {
  const char* folder = std::getenv("CINCH_TEXT_CASES");
  if (folder == nullptr) GTEST_SKIP() << "skipped: CINCH_TEXT_CASES names no folder";
  const std::filesystem::path path = folder;
  const JsonObject golden = JsonObject::from_file(path / "cases.json");
  size_t rows = 0, mismatches = 0;
  for (const auto& [name, value] : golden.json().items()) {
    const auto tokenizer = load_tokenizer_json(path / (name + ".tokenizer.json"));
    for (const JsonObject& row : golden.objects(name)) {
      const std::string found = difference(*tokenizer, row);
      ++rows;
      if (!found.empty() && ++mismatches <= 20) ADD_FAILURE() << name << ": " << found;
    }
  }
  std::printf("%zu rows compared, %zu mismatches\n", rows, mismatches);
  EXPECT_EQ(mismatches, 0u);
}

TEST(SlowTokenizer, RealTokenizersAgreeOnMegabytesOfText) {
  CINCH_NEEDS_ASSET(asset("tokenizers/gpt2/tokenizer.json"));
  const std::string golden_text = read_text(repo_file("tests/golden/text/real.json"));
  const Json rows = parse_json(golden_text, "real.json");
  ASSERT_FALSE(rows.empty());
  for (const Json& row : rows) {
    const auto tokenizer = load_tokenizer_json(asset(row.at("tokenizer")));
    const std::vector<int64_t> ids = tokenizer->encode(read_text(asset(row.at("text"))), false);
    EXPECT_EQ(ids.size(), row.at("count").get<size_t>()) << row.dump();
    const std::vector<uint32_t> narrow(ids.begin(), ids.end());
    EXPECT_EQ(sha256_hex(std::as_bytes(std::span(narrow))), row.at("sha256").get<std::string>()) << row.dump();
    const std::string decoded = tokenizer->decode(ids, false);
    EXPECT_EQ(sha256_hex(std::as_bytes(std::span(decoded))), row.at("decoded_sha256").get<std::string>()) << row.dump();
  }
}

TEST(SlowTokenizer, SentencePieceModelAgreesWithItsTokenizerJson) {
  CINCH_NEEDS_ASSET(asset("tokenizers/llama2/tokenizer.model"));
  const auto json = load_tokenizer_json(asset("tokenizers/llama2/tokenizer.json"));
  const auto model = load_sentencepiece(asset("tokenizers/llama2/tokenizer.model"));
  const auto vocabulary = make_gguf_tokenizer(sentencepiece_vocabulary(asset("tokenizers/llama2/tokenizer.model")));
  const std::string text = read_text(asset("text/wizard_of_oz.txt"));
  const std::vector<int64_t> ids = json->encode(text, true);
  ASSERT_GT(ids.size(), 10000u);
  EXPECT_EQ(model->encode(text, true), ids);
  EXPECT_EQ(vocabulary->encode(text, true), ids);
  EXPECT_EQ(model->decode(ids, true), text);
  EXPECT_EQ(vocabulary->decode(ids, true), text);
}

struct BadFile {
  const char* name;
  const char* from;
  const char* to;
  const char* message;
};

class BadTokenizer : public testing::TestWithParam<BadFile> {};

TEST_P(BadTokenizer, IsRefusedByName) {
  std::string text = read_text(repo_file("tests/golden/text/gpt2.tokenizer.json"));
  const size_t at = text.find(GetParam().from);
  ASSERT_NE(at, std::string::npos);
  text.replace(at, std::strlen(GetParam().from), GetParam().to);
  const TempFolder folder;
  write_text(folder / "tokenizer.json", text);
  try {
    load_tokenizer(folder.path());
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr(GetParam().message));
    EXPECT_THAT(error.what(), HasSubstr("tokenizer.json"));
  }
}

INSTANTIATE_TEST_SUITE_P(Table, BadTokenizer,
                         testing::Values(BadFile{"model", R"("type":"BPE")", R"("type":"WordPiece")", "WordPiece"},
                                         BadFile{"pre_tokenizer", R"("pre_tokenizer":{"type":"ByteLevel")",
                                                 R"("pre_tokenizer":{"type":"BertPreTokenizer")", "BertPreTokenizer"},
                                         BadFile{"decoder", R"("decoder":{"type":"ByteLevel")",
                                                 R"("decoder":{"type":"CTC")", "CTC"},
                                         BadFile{"merge", R"("merges":[)", R"("merges":[["zzz","qqq"],)", "zzz"},
                                         BadFile{"json", R"("version")", R"(version")", "JSON"}),
                         [](const auto& param_info) { return std::string(param_info.param.name); });

/// Every place in `json` outside of the long lists, as JSON pointers.
void list_places(const Json& json, const Json::json_pointer& at, std::vector<Json::json_pointer>& places) {
  places.push_back(at);
  size_t count = 0;
  if (json.is_object()) {
    for (const auto& [key, value] : json.items()) {
      if (++count <= 12) list_places(value, at / key, places);
    }
  } else if (json.is_array()) {
    for (size_t i = 0; i < std::min<size_t>(json.size(), 4); ++i) list_places(json[i], at / i, places);
  }
}

TEST(Tokenizer, NoChangeOfAFileLeadsOutOfTheProjectsErrors) {
  const std::vector<Json> values = {
      nullptr, 0,   -1,     4194304,        1e300,         UINT64_MAX,     true,
      "",      "x", "\\p{", "\xEF\xBF\xBD", Json::array(), Json::object(), Json::array({"a", -1})};
  size_t refused = 0, accepted = 0;
  for (const char* name :
       {"added_flags", "bert_processing", "template_both_ends", "published_0", "published_1", "published_2",
        "published_3", "string_merges", "random_merges", "metaspace_first", "unknown_bytes", "split_word"}) {
    const Json sound =
        parse_json(read_text(repo_file(std::string("tests/golden/text/") + name + ".tokenizer.json")), name);
    std::vector<Json::json_pointer> places;
    list_places(sound, Json::json_pointer(), places);
    for (const auto& place : places) {
      for (const Json& value : values) {
        Json changed = sound;
        changed[place] = value;
        try {
          const auto tokenizer = make_json_tokenizer(changed, "tokenizer.json", {});
          tokenizer->decode(tokenizer->encode(" ab-- 1\xFF'", true), true);
          ++accepted;
        } catch (const Error&) {
          ++refused;
        }
      }
    }
  }
  EXPECT_GT(refused, 500u);
  EXPECT_GT(accepted, 100u);
}

TEST(Tokenizer, FaultsOfIdsAreNamed) {
  const Json sound = parse_json(read_text(repo_file("tests/golden/text/gpt2.tokenizer.json")), "gpt2");
  const auto message = [&](const char* place, const Json& value) -> std::string {
    Json changed = sound;
    changed[Json::json_pointer(place)] = value;
    try {
      make_json_tokenizer(changed, "tokenizer.json", {});
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_THAT(message("/model/vocab/a", 2147483647), HasSubstr("\"a\": 2147483647 is not a token id"));
  EXPECT_THAT(message("/added_tokens/2/id", 7), HasSubstr("\"<|sep|>\" has the id 7 here, but 420"));
  EXPECT_THAT(message("/post_processor", Json{{"type", "BertProcessing"}, {"sep", {"x", 999}}, {"cls", {"y", 0}}}),
              HasSubstr("the id 999 is outside of the vocabulary of 421"));
  EXPECT_THAT(message("/model/merges/0", "a b c"), HasSubstr("merges[0]: a merge is two pieces"));
}

TEST(SlowTokenizer, LoadingAndLongWordsTakeSecondsAtMost) {
  CINCH_NEEDS_ASSET(asset("tokenizers/gpt2/tokenizer.json"));
  const auto seconds = [start = std::chrono::steady_clock::now()] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  for (const char* name : {"tokenizers/gpt2/tokenizer.json", "tokenizers/llama2/tokenizer.json"}) {
    const double before = seconds();
    const auto tokenizer = load_tokenizer_json(asset(name));
    EXPECT_LT(seconds() - before, 1.0) << name;
    for (const char* unit : {"a", "7", " ", "\n", "qwertyuiopasdf", "漢字", "<s>", "\xFF"}) {
      std::string text;
      while (text.size() < 1000000) text += unit;
      const double start = seconds();
      const std::vector<int64_t> ids = tokenizer->encode(text, false);
      tokenizer->decode(ids, false);
      EXPECT_LT(seconds() - start, 5.0) << name << ": " << unit;
    }
  }
}

TEST(Tokenizer, AFolderWithoutOneGivesNothing) {
  const TempFolder folder;
  EXPECT_EQ(load_tokenizer(folder.path()), nullptr);
}

TEST(GgufVocabulary, SurvivesTheWayThroughGguf) {
  for (const char* name : {"gpt2", "llama3", "qwen2", "smollm", "llama2"}) {
    const TempFolder folder;
    std::filesystem::copy_file(repo_file(std::string("tests/golden/text/") + name + ".tokenizer.json"),
                               folder / "tokenizer.json");
    write_text(folder / "tokenizer_config.json", R"({"bos_token": "<s>", "eos_token": {"content": "</s>"}})");
    // SentencePiece vocabularies in GGUF have no added tokens that swallow the space before them.
    const bool spm = std::string_view(name) == "llama2";
    const std::string text = std::string("Once upon a time 1234 ") + (spm ? "" : "<|sep|>") + " naïve 😀\n\n end";
    const auto original = load_tokenizer(folder.path());
    const GgufVocabulary vocabulary = gguf_vocabulary(folder.path());
    const auto again = make_gguf_tokenizer(vocabulary);
    EXPECT_EQ(again->encode(text, true), original->encode(text, true)) << name;
    EXPECT_EQ(again->bos_id(), original->bos_id()) << name;
    EXPECT_EQ(again->eos_id(), original->eos_id()) << name;
    EXPECT_TRUE(original->bos_id().has_value()) << name;
  }
}

}  // namespace
}  // namespace cinch
