#include <fmt/format.h>
#include <gmock/gmock.h>
#include <sys/stat.h>

#include <algorithm>

#include "core/files.h"
#include "tests/src/run_cinch.h"

namespace cinch {
namespace {

TEST(EvalCommand, JsonKeys) {
  const TempFolder folder;
  const std::string text = repo_file("examples/stories/test.txt").string(), model = stories_model(),
                    copy = (folder / "report.json").string();
  const Outcome outcome = run_cinch({"eval", model, "--reference", model, "--text", text, "--max-tokens", "1500",
                                     "--window", "256", "--json", "-q", "--output", copy});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Json json = outcome.json();
  for (const char* part : {"perplexity", "reference_perplexity"}) {
    for (const char* key : {"protocol", "value", "stderr", "tokens", "window"})
      EXPECT_TRUE(json[part].contains(key)) << part << key;
  }
  for (const char* key : {"kl_mean", "kl_median", "kl_p99", "kl_max", "top1_agreement", "tokens"})
    EXPECT_TRUE(json["fidelity"].contains(key)) << key;
  for (const char* key : {"tasks", "seconds", "tokens_per_second"}) EXPECT_TRUE(json.contains(key)) << key;
  EXPECT_EQ(json["perplexity"]["protocol"], "ppl-gptq-256");
  EXPECT_EQ(json["perplexity"]["tokens"], 5 * 255);
  EXPECT_LT(json["perplexity"]["value"].get<double>(), 8);  // a trained model on its own kind of text
  EXPECT_EQ(json["fidelity"]["kl_max"], 0);
  EXPECT_EQ(json["cache"]["kv_bytes_per_token"], 5 * 2 * 4 * 8 * 2);
  EXPECT_EQ(json["cache"]["kv_ratio"], 1.0);
  EXPECT_EQ(parse_json(read_text(copy), copy), json);
  EXPECT_EQ(outcome.err, "");
}

TEST(EvalCommand, TextNamesProtocolAndError) {
  const TempFolder folder;
  write_text(folder / "ids.txt", "5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20");
  const Outcome outcome =
      run_cinch({"eval", tiny_model(), "--tokens", (folder / "ids.txt").string(), "--protocol", "ppl-stride-8-4"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, testing::HasSubstr("ppl-stride-8-4: 3 windows, 15 tokens scored"));
  EXPECT_THAT(outcome.out, testing::HasSubstr("±"));
}

TEST(EvalCommand, WritesLogits) {
  const TempFolder folder;
  write_text(folder / "ids.txt", "5 6 7\n8 9\n");
  const std::string file = (folder / "logits.npy").string();
  const Outcome outcome =
      run_cinch({"eval", tiny_model(), "--tokens", (folder / "ids.txt").string(), "--logits", file, "--json", "-q"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.json()["tokens"], 5);
  EXPECT_EQ(std::filesystem::file_size(file) % 64, size_t{5 * 61 * 4} % 64);
}

/// Ids for the tiny model, and the arguments that evaluate on them.
std::vector<std::string> tiny_eval(const TempFolder& folder, const std::vector<std::string>& arguments) {
  std::string ids;
  for (int i = 0; i < 200; ++i) ids += fmt::format("{} ", 3 + (i * i + 7 * i) % 58);
  write_text(folder / "ids.txt", ids);
  std::vector<std::string> all = {"eval"};
  all.insert(all.end(), arguments.begin(), arguments.end());
  for (const std::string& word : {std::string("--tokens"), (folder / "ids.txt").string(), std::string("--window"),
                                  std::string("40"), std::string("-q")})
    all.push_back(word);
  return all;
}

std::string tiny_reference() { return repo_file("tests/golden/eval/reference").string(); }

TEST(EvalCommand, SeveralModelsAndPrecisionsGiveATable) {
  const TempFolder folder;
  const Outcome outcome = run_cinch(
      tiny_eval(folder, {tiny_model(), tiny_reference(), "--reference", tiny_reference(), "--cache", "int8,int2"}));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, testing::StartsWith("ppl-gptq-40: 5 windows, 195 tokens scored\n\nmodel "));
  for (const char* part : {"cache", "KV bytes/token", "% of 16 bits", "KL (nats)", "top-1 agreement %", "16 bit",
                           "int8", "int2", "(reference)", "100.00", "of the reference's 16-bit cache", "tokens/s"})
    EXPECT_THAT(outcome.out, testing::HasSubstr(part));
  // Six rows between two blank lines, most bytes first: the reference, though given as a model too, stands there once.
  const size_t table = outcome.out.find("\nmodel ") + 1;
  const std::string rows = outcome.out.substr(table, outcome.out.find("\n\n", table) - table);
  EXPECT_EQ(std::count(rows.begin(), rows.end(), '\n'), 6);
  EXPECT_LT(rows.rfind("16 bit"), rows.find("int8"));
  EXPECT_LT(rows.rfind("int8"), rows.find("int2"));
}

TEST(EvalCommand, AModelHasNoDistanceToItself) {
  const TempFolder folder;
  const Outcome outcome =
      run_cinch(tiny_eval(folder, {tiny_reference(), "--reference", tiny_reference(), "--cache", "int8"}));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, testing::HasSubstr("0.000000 ± 0.000000"));
}

TEST(EvalCommand, TableAsJson) {
  const TempFolder folder;
  const std::string copy = (folder / "report.json").string();
  const Outcome outcome = run_cinch(tiny_eval(
      folder, {tiny_model(), "--reference", tiny_reference(), "--cache", "int4", "--json", "--output", copy}));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Json json = outcome.json();
  EXPECT_EQ(json["protocol"], "ppl-gptq-40");
  EXPECT_EQ(json["reference"], tiny_reference());
  for (const char* key : {"text", "dtype", "seconds", "tokens_per_second"}) EXPECT_TRUE(json.contains(key)) << key;
  ASSERT_EQ(json["rows"].size(), 4u);
  double before = 1e9;
  for (const Json& row : json["rows"]) {
    const bool reference = row["model"] == tiny_reference(), whole = row["cache"] == "16 bit";
    EXPECT_TRUE(reference || row["model"] == tiny_model());
    EXPECT_EQ(row.contains("fidelity"), !reference || !whole);
    EXPECT_EQ(row["bits_per_number"] == 16.0, whole);
    EXPECT_EQ(row["perplexity"]["tokens"], 195);
    EXPECT_LE(row["kv_bytes_per_token"].get<double>(), before);
    before = row["kv_bytes_per_token"].get<double>();
    if (reference && whole) {
      EXPECT_EQ(row["kv_ratio"], 1.0);
    }
  }
  EXPECT_EQ(parse_json(read_text(copy), copy), json);

  // The 16-bit row is the report of the model alone.
  const Outcome alone = run_cinch(tiny_eval(folder, {tiny_model(), "--reference", tiny_reference(), "--json"}));
  for (const Json& row : json["rows"]) {
    if (row["model"] != tiny_model() || row["cache"] != "16 bit") continue;
    EXPECT_EQ(row["perplexity"], alone.json()["perplexity"]);
    EXPECT_EQ(row["fidelity"], alone.json()["fidelity"]);
    EXPECT_EQ(row["kv_bytes_per_token"], alone.json()["cache"]["kv_bytes_per_token"]);
  }
}

TEST(EvalCommand, TwoModelsWithoutReferenceHaveNoDivergence) {
  const TempFolder folder;
  const Outcome outcome = run_cinch(tiny_eval(folder, {tiny_model(), tiny_reference()}));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, testing::Not(testing::HasSubstr("KL")));
  EXPECT_THAT(outcome.out, testing::HasSubstr("%: of " + tiny_model() + "'s 16-bit cache"));
}

TEST(EvalCommand, RefusesWhatCannotBeATable) {
  const TempFolder folder;
  const std::string logits = (folder / "logits.npy").string();
  struct Case {
    std::vector<std::string> arguments;
    const char *error, *help;
  };
  const std::vector<Case> cases = {
      {{tiny_model(), "--cache", "int5"}, "unknown cache precision \"int5\"", "known: int8, int4, int3, int2, 16"},
      {{tiny_model(), "--cache", ""}, "--cache: the value is empty", ""},
      {{tiny_model(), "--cache", ","}, "unknown cache precision \"\"", "int8"},
      {{tiny_model(), "--cache", "int8,"}, "unknown cache precision \"\"", "int8"},
      {{tiny_model(), "--cache", "int8,int4,int8"}, "--cache int8,int4,int8: int8 is given twice", ""},
      {{tiny_model(), "--cache", "int8", "--logits", logits}, "--logits writes those of one model at 16 bits", "run"},
      {{tiny_model(), tiny_reference(), "--logits", logits}, "found several models", "run"},
      {{tiny_model(), tiny_reference(), tiny_model() + "/"}, "is given twice", "give each model once"},
      {{tiny_model(), stories_model()}, "has a vocabulary of 512 tokens", "made from"},
      {{tiny_model(), "/nowhere"}, "MODEL: no such file or folder: /nowhere", ""},
  };
  for (const Case& c : cases) {
    const Outcome outcome = run_cinch(tiny_eval(folder, c.arguments));
    EXPECT_EQ(outcome.code, 2) << c.error;
    EXPECT_THAT(outcome.err, testing::AllOf(testing::HasSubstr(c.error), testing::HasSubstr(c.help)));
    EXPECT_EQ(outcome.out, "");
  }
  EXPECT_FALSE(std::filesystem::exists(logits));
}

TEST(EvalCommand, TooShortATextSaysSo) {
  const TempFolder folder;
  write_text(folder / "ids.txt", "5 6 7");
  const Outcome outcome = run_cinch({"eval", tiny_model(), "--tokens", (folder / "ids.txt").string()});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.err, testing::HasSubstr("the text has 3 tokens, fewer than one window of 128"));
}

TEST(EvalCommand, ABadPlaceForTheReportShowsBeforeTheWork) {
  const TempFolder folder;
  const std::string pipe = (folder / "pipe").string();
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  for (const std::string& place : {(folder / "absent/report.json").string(), folder.path().string(), pipe}) {
    const Outcome outcome =
        run_cinch({"eval", stories_model(), "--text", repo_file("examples/stories/test.txt").string(), "--max-tokens",
                   "300", "--window", "64", "--output", place, "-q"});
    EXPECT_EQ(outcome.code, 1) << outcome.err;
    EXPECT_THAT(outcome.err, testing::HasSubstr("error: cannot write " + place));
    EXPECT_THAT(outcome.err, testing::HasSubstr("\nhelp: "));
    EXPECT_EQ(outcome.out, "");
  }
  EXPECT_TRUE(std::filesystem::is_fifo(pipe)) << "what is no plain file is not replaced";
}

}  // namespace
}  // namespace cinch
