// JSON whose errors say where: every getter knows the file and the path ("config.json: rope_scaling.factor: expected a
// number, found \"8\"").
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace cinch {

using Json = nlohmann::ordered_json;

/// Parses with a depth limit (64), a size limit and a UTF-8 check; duplicate keys are refused. Throws ConfigError
/// naming `origin`.
Json parse_json(std::string_view text, const std::string& origin);

/// A read-only view of a JSON object with typed getters. Throws ConfigError naming file and path.
class JsonObject {
 public:
  JsonObject(Json value, std::string origin, std::string path = "");
  static JsonObject from_file(const std::filesystem::path& path);

  bool has(std::string_view key) const;  // present and not null
  int64_t integer(std::string_view key) const;
  int64_t integer_or(std::string_view key, int64_t fallback) const;
  /// A size: far above every real one by default, so that products stay far from overflow.
  int64_t size(std::string_view key, int64_t least = 1, int64_t most = int64_t{1} << 26) const;
  double number(std::string_view key) const;
  double number_or(std::string_view key, double fallback) const;
  bool boolean_or(std::string_view key, bool fallback) const;
  std::string string(std::string_view key) const;
  std::string string_or(std::string_view key, const std::string& fallback) const;
  std::vector<double> numbers(std::string_view key) const;
  std::vector<int64_t> integers(std::string_view key) const;
  std::vector<std::string> strings(std::string_view key) const;
  JsonObject object(std::string_view key) const;
  std::optional<JsonObject> object_if(std::string_view key) const;
  std::vector<JsonObject> objects(std::string_view key) const;

  const Json& json() const { return value_; }
  const std::string& origin() const { return origin_; }
  /// "config.json: rope_scaling.factor", for messages of callers that check more.
  std::string where(std::string_view key) const;

 private:
  const Json& require(std::string_view key) const;
  Json value_;
  std::string origin_;
  std::string path_;
};

/// The candidate nearest to `word` by edit distance, or empty when none is near: for "did you mean".
std::string nearest_word(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace cinch
