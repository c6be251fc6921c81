#include "core/json.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <numeric>
#include <unordered_set>
#include <utility>

#include "core/errors.h"
#include "core/files.h"

namespace cinch {
namespace {

constexpr size_t kMaxDepth = 64;
constexpr uint64_t kMaxBytes = uint64_t{1} << 30;

/// Builds an ordered Json. The library's own builder looks for an equal key before each insertion, which takes minutes
/// for the vocabulary of a tokenizer; this one appends and keeps a set of the open objects' keys.
class Builder : public nlohmann::json_sax<Json> {
 public:
  Json result;
  std::string fault;

  bool null() override { return add(nullptr) != nullptr; }
  bool boolean(bool value) override { return add(value) != nullptr; }
  bool number_integer(number_integer_t value) override { return add(value) != nullptr; }
  bool number_unsigned(number_unsigned_t value) override { return add(value) != nullptr; }
  bool number_float(number_float_t value, const string_t&) override { return add(value) != nullptr; }
  bool string(string_t& value) override { return add(std::move(value)) != nullptr; }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open(Json::object()); }
  bool start_array(std::size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& value) override {
    if (!levels_.back().keys.insert(value).second) {
      fault = fmt::format("the key \"{}\" appears twice in one object", value);
      return false;
    }
    key_ = std::move(value);
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..." without the library's tag
    const std::string_view text = error.what();
    const size_t tag_end = text.find("] ");
    fault = tag_end == text.npos ? fmt::format("not JSON at byte {}", position)
                                 : fmt::format("not JSON: {}", text.substr(tag_end + 2));
    return false;
  }

 private:
  struct Level {
    Json* value;
    std::unordered_set<std::string> keys;
  };

  Json* add(Json value) {
    if (levels_.empty()) {
      result = std::move(value);
      return &result;
    }
    Json& parent = *levels_.back().value;
    if (parent.is_array()) {
      auto& items = parent.get_ref<Json::array_t&>();
      items.push_back(std::move(value));
      return &items.back();
    }
    using Members = std::vector<std::pair<const std::string, Json>>;
    Members& members = parent.get_ref<Json::object_t&>();
    members.emplace_back(std::move(key_), std::move(value));
    return &members.back().second;
  }

  bool open(Json value) {
    if (levels_.size() >= kMaxDepth) {
      fault = fmt::format("nested deeper than {} levels", kMaxDepth);
      return false;
    }
    levels_.push_back({add(std::move(value)), {}});
    return true;
  }

  bool close() {
    levels_.pop_back();
    return true;
  }

  std::vector<Level> levels_;
  std::string key_;
};

char folded(char letter) {
  const char lower = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
  return lower == '-' ? '_' : lower;
}

/// Insertions, deletions, substitutions and swaps of neighbours, each of cost 1 (optimal string alignment).
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> before(b.size() + 1), above(b.size() + 1), row(b.size() + 1);
  std::iota(above.begin(), above.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const bool same = folded(a[i - 1]) == folded(b[j - 1]);
      row[j] = std::min({above[j] + 1, row[j - 1] + 1, above[j - 1] + (same ? 0 : 1)});
      const bool swapped =
          i > 1 && j > 1 && folded(a[i - 1]) == folded(b[j - 2]) && folded(a[i - 2]) == folded(b[j - 1]);
      if (swapped) row[j] = std::min(row[j], before[j - 2] + 1);
    }
    std::swap(before, above);
    std::swap(above, row);
  }
  return above[b.size()];
}

std::string shown(const Json& value) {
  const std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  return text.size() > 60 ? text.substr(0, 57) + "..." : text;
}

}  // namespace

Json parse_json(std::string_view text, const std::string& origin) {
  if (text.size() > kMaxBytes) {
    throw ConfigError(fmt::format("{}: {} bytes of JSON, more than the {} allowed", origin, text.size(), kMaxBytes));
  }
  Builder builder;
  if (!Json::sax_parse(text.begin(), text.end(), &builder)) {
    throw ConfigError(fmt::format("{}: {}", origin, builder.fault));
  }
  return std::move(builder.result);
}

JsonObject::JsonObject(Json value, std::string origin, std::string path)
    : value_(std::move(value)), origin_(std::move(origin)), path_(std::move(path)) {
  if (!value_.is_object()) {
    throw ConfigError(
        fmt::format("{}: {}expected an object, found {}", origin_, path_.empty() ? "" : path_ + ": ", shown(value_)));
  }
}

JsonObject JsonObject::from_file(const std::filesystem::path& path) {
  return JsonObject(parse_json(read_text(path), path.string()), path.string());
}

std::string JsonObject::where(std::string_view key) const {
  return fmt::format("{}: {}{}{}", origin_, path_, path_.empty() ? "" : ".", key);
}

bool JsonObject::has(std::string_view key) const {
  const auto found = value_.find(std::string(key));
  return found != value_.end() && !found->is_null();
}

const Json& JsonObject::require(std::string_view key) const {
  if (!has(key)) throw ConfigError(fmt::format("{}: the key is missing", where(key)));
  return value_.at(std::string(key));
}

int64_t JsonObject::integer(std::string_view key) const {
  const Json& value = require(key);
  if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
    throw ConfigError(fmt::format("{}: {} is too large", where(key), shown(value)));
  }
  if (!value.is_number_integer()) {
    throw ConfigError(fmt::format("{}: expected an integer, found {}", where(key), shown(value)));
  }
  return value.get<int64_t>();
}

int64_t JsonObject::integer_or(std::string_view key, int64_t fallback) const {
  return has(key) ? integer(key) : fallback;
}

int64_t JsonObject::size(std::string_view key, int64_t least, int64_t most) const {
  const int64_t value = integer(key);
  if (value < least || value > most)
    throw ConfigError(fmt::format("{}: {} is not between {} and {}", where(key), value, least, most));
  return value;
}

double JsonObject::number(std::string_view key) const {
  const Json& value = require(key);
  if (!value.is_number()) throw ConfigError(fmt::format("{}: expected a number, found {}", where(key), shown(value)));
  return value.get<double>();
}

double JsonObject::number_or(std::string_view key, double fallback) const { return has(key) ? number(key) : fallback; }

bool JsonObject::boolean_or(std::string_view key, bool fallback) const {
  if (!has(key)) return fallback;
  const Json& value = require(key);
  if (!value.is_boolean()) {
    throw ConfigError(fmt::format("{}: expected true or false, found {}", where(key), shown(value)));
  }
  return value.get<bool>();
}

std::string JsonObject::string(std::string_view key) const {
  const Json& value = require(key);
  if (!value.is_string()) throw ConfigError(fmt::format("{}: expected a string, found {}", where(key), shown(value)));
  return value.get<std::string>();
}

std::string JsonObject::string_or(std::string_view key, const std::string& fallback) const {
  return has(key) ? string(key) : fallback;
}

namespace {

template <typename T, typename Check>
std::vector<T> list_of(const Json& value, const std::string& where, const char* kind, Check check) {
  if (!value.is_array()) throw ConfigError(fmt::format("{}: expected a list, found {}", where, shown(value)));
  std::vector<T> list;
  list.reserve(value.size());
  for (const Json& item : value) {
    if (!check(item)) throw ConfigError(fmt::format("{}: expected {}, found {}", where, kind, shown(item)));
    list.push_back(item.template get<T>());
  }
  return list;
}

}  // namespace

std::vector<double> JsonObject::numbers(std::string_view key) const {
  return list_of<double>(require(key), where(key), "numbers", [](const Json& item) { return item.is_number(); });
}

std::vector<int64_t> JsonObject::integers(std::string_view key) const {
  return list_of<int64_t>(require(key), where(key), "integers below 2^63", [](const Json& item) {
    return item.is_number_integer() &&
           (!item.is_number_unsigned() || item.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX));
  });
}

std::vector<std::string> JsonObject::strings(std::string_view key) const {
  return list_of<std::string>(require(key), where(key), "strings", [](const Json& item) { return item.is_string(); });
}

JsonObject JsonObject::object(std::string_view key) const {
  return JsonObject(require(key), origin_, path_.empty() ? std::string(key) : fmt::format("{}.{}", path_, key));
}

std::optional<JsonObject> JsonObject::object_if(std::string_view key) const {
  if (!has(key)) return std::nullopt;
  return object(key);
}

std::vector<JsonObject> JsonObject::objects(std::string_view key) const {
  const Json& value = require(key);
  if (!value.is_array()) throw ConfigError(fmt::format("{}: expected a list, found {}", where(key), shown(value)));
  std::vector<JsonObject> list;
  for (size_t i = 0; i < value.size(); ++i) {
    list.emplace_back(value[i], origin_, fmt::format("{}{}{}[{}]", path_, path_.empty() ? "" : ".", key, i));
  }
  return list;
}

std::string nearest_word(std::string_view word, const std::vector<std::string>& candidates) {
  std::string best;
  size_t best_distance = std::max<size_t>(2, word.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    const size_t distance = edit_distance(word, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

}  // namespace cinch
