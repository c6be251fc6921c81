// Byte-pair encoding of one word: symbols are merged by rank, lowest first, leftmost among equals.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace cinch {

/// Lets unordered_map<string, ...> be asked with a string_view.
struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};
using VocabularyMap = std::unordered_map<std::string, int64_t, StringHash, std::equal_to<>>;

class BpeModel {
 public:
  struct Options {
    VocabularyMap vocabulary;
    std::vector<std::pair<std::string, std::string>> merges;  // in rank order
    std::optional<std::string> unknown;
    bool fuse_unknown = false;
    bool byte_fallback = false;
    bool ignore_merges = false;  // a word that is in the vocabulary is one token
  };
  /// Throws ConfigError naming a merge whose parts or result are not in the vocabulary.
  BpeModel(Options options, const std::string& origin);

  /// Appends the ids of one word, in O(n log n). Throws ConfigError where the unknown token is needed and missing.
  void encode(std::string_view word, std::vector<int64_t>& ids) const;
  const VocabularyMap& vocabulary() const { return options_.vocabulary; }

 private:
  struct Merge {
    uint32_t rank;
    int64_t id;
  };
  struct PairHash {
    size_t operator()(uint64_t key) const { return static_cast<size_t>((key ^ (key >> 29)) * 0x9E3779B97F4A7C15ull); }
  };
  static uint64_t pair_key(int64_t a, int64_t b) { return static_cast<uint64_t>(a) << 32 | static_cast<uint64_t>(b); }
  std::vector<int64_t> symbols(std::string_view word) const;
  bool append_bytes(std::string_view character, std::vector<int64_t>& ids) const;
  int64_t unknown_id() const;
  void merge(std::vector<int64_t>& symbols) const;

  Options options_;
  std::string origin_;
  std::optional<int64_t> unknown_id_;
  std::vector<int64_t> byte_ids_;  // 256, or empty without byte fallback
  std::unordered_map<uint64_t, Merge, PairHash> merges_;
};

}  // namespace cinch
