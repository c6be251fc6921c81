// Damaged and impossible models, as a command meets them: the file is named, the exit code is right, a way out is told.
#include <gmock/gmock.h>

#include <cstring>
#include <functional>
#include <limits>

#include "core/files.h"
#include "tests/src/run_cinch.h"

namespace cinch {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;

struct BadModel {
  std::string name;
  int code;
  std::string says;
  std::function<void(const fs::path&)> damage;
};

void PrintTo(const BadModel& bad, std::ostream* out) { *out << bad.name; }

/// Copies the bundled model and damages the copy.
class BadModels : public testing::TestWithParam<BadModel> {
 protected:
  BadModels() {
    fs::copy(stories_model(), model());
    GetParam().damage(model());
  }
  fs::path model() const { return folder_ / "model"; }
  TempFolder folder_;
};

TEST_P(BadModels, AreRefusedByEveryCommandThatOpensThem) {
  const std::string path = model().string(), out = (folder_ / "out").string();
  for (const std::vector<std::string>& command : std::vector<std::vector<std::string>>{
           {"plan", path, "--to", "mqa"},
           {"convert", path, out, "--to", "mqa", "--method", "mean", "--no-refit", "-q"}}) {
    const Outcome outcome = run_cinch(command);
    EXPECT_EQ(outcome.code, GetParam().code) << outcome.err;
    EXPECT_THAT(outcome.err, testing::StartsWith("error: "));
    EXPECT_THAT(outcome.err.substr(0, outcome.err.find('\n')), HasSubstr(GetParam().says));
    EXPECT_THAT(outcome.err, HasSubstr("\nhelp: "));
    EXPECT_THAT(outcome.err, Not(HasSubstr("while while")));
    EXPECT_EQ(outcome.out, "");
  }
  EXPECT_THAT(folder_.names(), testing::ElementsAre("model")) << "nothing is left";
}

void truncate(const fs::path& file, double share) {
  fs::resize_file(file, static_cast<uintmax_t>(share * static_cast<double>(fs::file_size(file))));
}

BadModel config(const std::string& name, int code, const std::string& says, const std::string& key, const Json& value) {
  return {name, code, says, [=](const fs::path& model) {
            Json json = parse_json(read_text(model / "config.json"), "config");
            json[key] = value;
            write_text(model / "config.json", json.dump());
          }};
}

BadModel text(const std::string& name, int code, const std::string& says, const std::string& file,
              const std::string& content) {
  return {name, code, says, [=](const fs::path& model) { write_text(model / file, content); }};
}

INSTANTIATE_TEST_SUITE_P(
    All, BadModels,
    testing::Values(
        BadModel{"no_config", 3, "there is no config.json", [](const fs::path& m) { fs::remove(m / "config.json"); }},
        text("empty_config", 3, "config.json: not JSON", "config.json", ""),
        text("list_config", 3, "config.json: expected an object", "config.json", "[]"),
        text("config_not_utf8", 3, "config.json: not JSON", "config.json", "{\"a\": \"\xff\"}"),
        BadModel{"cut_config", 3, "config.json: not JSON", [](const fs::path& m) { truncate(m / "config.json", 0.5); }},
        BadModel{"config_is_a_folder", 3, "config.json: not a regular file",
                 [](const fs::path& m) {
                   fs::remove(m / "config.json");
                   fs::create_directory(m / "config.json");
                 }},
        BadModel{"no_tensors", 3, "no model tensors", [](const fs::path& m) { fs::remove(m / "model.safetensors"); }},
        text("empty_tensors", 3, "model.safetensors: too short", "model.safetensors", ""),
        BadModel{"tensors_are_a_folder", 3, "model.safetensors: not a regular file",
                 [](const fs::path& m) {
                   fs::remove(m / "model.safetensors");
                   fs::create_directory(m / "model.safetensors");
                 }},
        BadModel{"cut_header", 3, "model.safetensors: the header claims",
                 [](const fs::path& m) { truncate(m / "model.safetensors", 0.001); }},
        BadModel{"cut_data", 3, "truncated", [](const fs::path& m) { truncate(m / "model.safetensors", 0.5); }},
        config("no_vocabulary", 3, "vocab_size: 0 is not between", "vocab_size", 0),
        config("negative_layers", 3, "num_hidden_layers: -1 is not between", "num_hidden_layers", -1),
        config("too_many_layers", 3, "num_hidden_layers: 1000000000000 is not", "num_hidden_layers", 1000000000000),
        config("many_layers", 3, "num_hidden_layers: 60000000 is not between 1 and 100000", "num_hidden_layers",
               60000000),
        config("odd_head", 3, "the rotated width 7 is not a positive even number", "head_dim", 7),
        config("layers_as_text", 3, "num_hidden_layers: expected an integer", "num_hidden_layers", "5"),
        config("uneven_heads", 3, "8 query heads cannot share 3 KV heads", "num_key_value_heads", 3),
        config("wrong_shape", 3, "tensors do not fit the config", "head_dim", 16),
        config("foreign_activation", 4, "hidden_act: activation \"swish9\" is not known", "hidden_act", "swish9"),
        config("foreign_rope", 4, "magic", "rope_scaling", {{"rope_type", "magic"}}),
        config("impossible_rope", 3, "factor", "rope_scaling", {{"rope_type", "linear"}, {"factor", 0}}),
        config("negative_theta", 3, "theta", "rope_theta", -5)),
    [](const auto& test) { return test.param.name; });

TEST(ShortContext, IsTooShortToCalibrateOn) {
  const TempFolder folder;
  const fs::path model = folder / "model";
  fs::copy(stories_model(), model);
  Json json = parse_json(read_text(model / "config.json"), "config");
  json["max_position_embeddings"] = 1;
  write_text(model / "config.json", json.dump());
  const Outcome refused = run_cinch({"plan", model.string(), "--to", "mqa"});
  EXPECT_EQ(refused.code, 4) << refused.err;
  EXPECT_THAT(refused.err, HasSubstr("--method aligned: a calibration window has at least 8 tokens"));
  EXPECT_EQ(run_cinch({"plan", model.string(), "--to", "mqa", "--method", "mean", "--no-refit"}).code, 0);
}

TEST(BadWeights, NanIsNamedAndNothingIsWritten) {
  for (const std::string name : {"model.layers.3.self_attn.k_proj.weight", "model.layers.2.mlp.up_proj.weight"}) {
    const TempFolder folder;
    const fs::path model = folder / "model";
    fs::copy(stories_model(), model);
    std::string file = read_text(model / "model.safetensors");
    uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, file.data(), sizeof header_bytes);
    const Json header = parse_json(std::string_view(file).substr(8, header_bytes), "header");
    const auto place = 8 + header_bytes + header.at(name).at("data_offsets").at(0).get<uint64_t>();
    const float nan = std::numeric_limits<float>::quiet_NaN();
    std::memcpy(file.data() + place, &nan, sizeof nan);
    write_text(model / "model.safetensors", file);

    const Outcome verified = run_cinch({"verify", model.string(), "-q"});
    EXPECT_EQ(verified.code, 5) << verified.err;
    EXPECT_THAT(verified.err, HasSubstr(name + ": holds NaN or infinity"));
    const bool attention = name.find("self_attn") != std::string::npos;
    const Outcome converted =
        run_cinch({"convert", model.string(), (folder / "out").string(), "--to", "mqa", "-q", "--method", "mean",
                   "--no-refit", "--calibration-tokens", "512", "--calibration-window", "64"});
    EXPECT_EQ(converted.code, 3) << converted.err;
    EXPECT_THAT(converted.err, HasSubstr(attention ? "\"" + name + "\" holds NaN or infinity"
                                                   : "the activations before this layer are NaN or infinite"));
    EXPECT_THAT(converted.err, HasSubstr("while converting layer 3\nhelp: `cinch verify MODEL`"));
    EXPECT_FALSE(fs::exists(folder / "out"));
  }
}

}  // namespace
}  // namespace cinch
