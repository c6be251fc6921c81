#include <gmock/gmock.h>
#include <sys/stat.h>

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
