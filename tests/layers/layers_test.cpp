// The house rules of docs/architecture: a folder includes only itself and lower levels, and files stay short.
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <regex>
#include <string>
#include <vector>

#include "tests/support/assets.h"

namespace cinch {
namespace {

namespace fs = std::filesystem;

constexpr int kMaxLines = 500;

const std::map<std::string, int>& levels() {
  static const std::map<std::string, int> map = {{"core", 1},      {"text", 2},  {"checkpoints", 2},
                                                 {"attention", 2}, {"model", 3}, {"convert", 4},
                                                 {"eval", 4},      {"train", 5}, {"src", 6}};
  return map;
}

bool is_source(const fs::path& path) {
  return path.extension() == ".cpp" || path.extension() == ".h" || path.extension() == ".cu" ||
         path.extension() == ".cuh";
}

std::vector<fs::path> sources_of(const std::string& folder) {
  std::vector<fs::path> files;
  if (!fs::exists(repo_file(folder))) return files;
  for (const auto& entry : fs::recursive_directory_iterator(repo_file(folder))) {
    if (entry.is_regular_file() && is_source(entry.path())) files.push_back(entry.path());
  }
  return files;
}

std::vector<std::string> lines_of(const fs::path& path) {
  std::ifstream input(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(input, line);) lines.push_back(line);
  return lines;
}

/// What is wrong with an include of `target` ("model/x.h") from `folder`; empty when allowed.
std::string include_fault(const std::string& folder, const std::string& target) {
  const size_t slash = target.find('/');
  if (slash == std::string::npos) return "names no folder";
  const std::string other = target.substr(0, slash);
  const auto level = levels().find(other);
  if (level == levels().end()) return "is of no folder of the house";
  if (other == folder) return {};
  const int own = levels().at(folder);
  if (level->second == own) return "goes sideways";
  return level->second > own ? "goes upward" : std::string();
}

TEST(Layers, TheRuleItself) {
  EXPECT_EQ(include_fault("model", "core/json.h"), "");
  EXPECT_EQ(include_fault("model", "model/generator.h"), "");
  EXPECT_EQ(include_fault("model", "convert/transform.h"), "goes upward");
  EXPECT_EQ(include_fault("eval", "convert/transform.h"), "goes sideways");
  EXPECT_EQ(include_fault("core", "json.h"), "names no folder");
  EXPECT_EQ(include_fault("core", "utils/json.h"), "is of no folder of the house");
}

TEST(Layers, IncludesGoDownOnly) {
  const std::regex include("^\\s*#\\s*include\\s*\"([^\"]+)\".*");
  size_t seen = 0;
  for (const auto& [folder, level] : levels()) {
    for (const fs::path& file : sources_of(folder)) {
      for (const std::string& line : lines_of(file)) {
        std::smatch match;
        if (!std::regex_match(line, match, include)) continue;
        ++seen;
        EXPECT_EQ(include_fault(folder, match[1]), "") << file << ": " << line;
      }
    }
  }
  EXPECT_GT(seen, 100u);
}

TEST(Layers, NoSourceIncludesAllOfTorch) {
  for (const auto& [folder, level] : levels()) {
    for (const fs::path& file : sources_of(folder)) {
      for (const std::string& line : lines_of(file)) EXPECT_FALSE(line.starts_with("#include <torch/torch.h>")) << file;
    }
  }
}

TEST(Layers, FilesAreShort) {
  for (const char* folder :
       {"core", "text", "checkpoints", "attention", "model", "convert", "eval", "train", "src", "tests"}) {
    for (const fs::path& file : sources_of(folder)) EXPECT_LE(lines_of(file).size(), size_t{kMaxLines}) << file;
  }
}

}  // namespace
}  // namespace cinch
