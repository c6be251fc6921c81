#include "core/json.h"

#include <gmock/gmock.h>

#include <chrono>

#include "core/errors.h"
#include "core/files.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

using ::testing::HasSubstr;

/// The message with which `body` throws E.
template <typename E, typename Body>
std::string message_of(Body body) {
  try {
    body();
  } catch (const E& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing thrown";
  return {};
}

TEST(ParseJson, KeepsTheOrderOfKeys) {
  const Json value =
      parse_json(R"({"z": 1, "a": [true, null, -2, 18446744073709551615, 1.5, "é"], "m": {}})", "x.json");
  EXPECT_EQ(value.dump(), R"({"z":1,"a":[true,null,-2,18446744073709551615,1.5,"é"],"m":{}})");
}

struct BadJson {
  std::string name, text, says;
};

class BadJsonTest : public ::testing::TestWithParam<BadJson> {};

TEST_P(BadJsonTest, IsRefusedWithTheOriginAndTheRule) {
  const std::string message = message_of<ConfigError>([&] { parse_json(GetParam().text, "bad.json"); });
  EXPECT_THAT(message, HasSubstr("bad.json: "));
  EXPECT_THAT(message, HasSubstr(GetParam().says));
  EXPECT_THAT(message, Not(HasSubstr("json.exception")));
}

INSTANTIATE_TEST_SUITE_P(
    Texts, BadJsonTest,
    ::testing::Values(BadJson{"empty", "", "not JSON"}, BadJson{"truncated", R"({"a": [1, 2)", "not JSON"},
                      BadJson{"trailing", "{} x", "not JSON"},
                      BadJson{"duplicate", R"({"a": {"k": 1, "k": 2}})", "\"k\" appears twice"},
                      BadJson{"deep", std::string(65, '[') + std::string(65, ']'), "deeper than 64"},
                      BadJson{"deep_unclosed", std::string(1000000, '['), "deeper than 64"},
                      BadJson{"utf8", "{\"a\": \"\xff\"}", "not JSON"},
                      BadJson{"surrogate", R"(["\ud800"])", "not JSON"}, BadJson{"huge_number", "[1e999]", "not JSON"},
                      BadJson{"nan", "[NaN]", "not JSON"}),
    [](const auto& test) { return test.param.name; });

TEST(ParseJson, DepthOfExactly64IsAllowed) {
  EXPECT_NO_THROW(parse_json(std::string(64, '[') + std::string(64, ']'), "x"));
}

TEST(ParseJson, LargeObjectsTakeLinearTime) {
  std::string text = "{";
  for (int i = 0; i < 200000; ++i) text += (i ? ",\"token" : "\"token") + std::to_string(i) + "\":" + std::to_string(i);
  text += "}";
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(parse_json(text, "vocab").size(), 200000u);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
}

JsonObject sample() {
  return JsonObject(parse_json(R"({"n": 3, "x": 2.5, "s": "word", "b": true, "none": null, "big": 18446744073709551615,
    "list": [1, 2], "words": ["a", "b"], "inner": {"factor": "8", "deeper": {"k": []}}, "many": [{"v": 1}, {"v": "no"}]})",
                               "config.json"),
                    "config.json");
}

TEST(JsonObject, TypedGetters) {
  const JsonObject object = sample();
  EXPECT_EQ(object.integer("n"), 3);
  EXPECT_EQ(object.number("n"), 3.0);
  EXPECT_EQ(object.number("x"), 2.5);
  EXPECT_EQ(object.string("s"), "word");
  EXPECT_TRUE(object.boolean_or("b", false));
  EXPECT_TRUE(object.boolean_or("absent", true));
  EXPECT_EQ(object.integer_or("none", 7), 7);
  EXPECT_EQ(object.string_or("none", "x"), "x");
  EXPECT_EQ(object.number_or("absent", 0.5), 0.5);
  EXPECT_FALSE(object.has("none"));
  EXPECT_TRUE(object.has("n"));
  EXPECT_EQ(object.numbers("list"), (std::vector<double>{1, 2}));
  EXPECT_EQ(object.integers("list"), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(object.strings("words"), (std::vector<std::string>{"a", "b"}));
  EXPECT_FALSE(object.object_if("none").has_value());
  EXPECT_EQ(object.objects("many").size(), 2u);
}

TEST(JsonObject, ErrorsNameFileAndPath) {
  const JsonObject object = sample();
  const auto text = [&](auto body) { return message_of<ConfigError>(body); };
  EXPECT_EQ(text([&] { object.integer("absent"); }), "config.json: absent: the key is missing");
  EXPECT_EQ(text([&] { object.object("inner").number("factor"); }),
            "config.json: inner.factor: expected a number, found \"8\"");
  EXPECT_EQ(text([&] { object.object("inner").object("deeper").integer("k"); }),
            "config.json: inner.deeper.k: expected an integer, found []");
  EXPECT_EQ(text([&] { object.integer("x"); }), "config.json: x: expected an integer, found 2.5");
  EXPECT_EQ(text([&] { object.integer("big"); }), "config.json: big: 18446744073709551615 is too large");
  EXPECT_EQ(text([&] { object.strings("list"); }), "config.json: list: expected strings, found 1");
  EXPECT_EQ(text([&] { object.objects("many")[1].integer("v"); }),
            "config.json: many[1].v: expected an integer, found \"no\"");
  EXPECT_EQ(text([&] { object.object("n"); }), "config.json: n: expected an object, found 3");
  EXPECT_EQ(text([&] { object.boolean_or("n", true); }), "config.json: n: expected true or false, found 3");
  EXPECT_EQ(text([&] { object.integers("s"); }), "config.json: s: expected a list, found \"word\"");
}

TEST(JsonObject, FromFile) {
  const TempFolder folder;
  write_text(folder / "c.json", R"({"a": 1})");
  EXPECT_EQ(JsonObject::from_file(folder / "c.json").integer("a"), 1);
  write_text(folder / "d.json", "[1]");
  EXPECT_THAT(message_of<ConfigError>([&] { JsonObject::from_file(folder / "d.json"); }),
              HasSubstr("expected an object"));
}

TEST(NearestWord, SuggestsOnlyWhatIsNear) {
  const std::vector<std::string> words = {"method", "calibration", "kv-budget", "rank"};
  EXPECT_EQ(nearest_word("metod", words), "method");
  EXPECT_EQ(nearest_word("calibraiton", words), "calibration");
  EXPECT_EQ(nearest_word("kv_budget", words), "kv-budget");
  EXPECT_EQ(nearest_word("Rank", words), "rank");
  EXPECT_EQ(nearest_word("zebra", words), "");
  EXPECT_EQ(nearest_word("", words), "");
  EXPECT_EQ(nearest_word("x", {}), "");
}

}  // namespace
}  // namespace cinch
