#include "text/corpus.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "core/errors.h"
#include "core/files.h"
#include "core/json.h"

namespace cinch {
namespace {

std::vector<std::string> read_jsonl(const std::filesystem::path& path) {
  const std::string text = read_text(path);
  std::vector<std::string> documents;
  size_t line_number = 0;
  for (size_t begin = 0; begin < text.size(); ++line_number) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line(text.data() + begin, end - begin);
    begin = end + 1;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string origin = fmt::format("{}:{}", path.string(), line_number + 1);
    documents.push_back(JsonObject(parse_json(line, origin), origin).string("text"));
  }
  return documents;
}

}  // namespace

CorpusSpec parse_corpus_spec(const std::string& text) {
  CorpusSpec spec{text, 1.0};
  const size_t colon = text.rfind(':');
  if (colon != std::string::npos && !std::filesystem::exists(text)) {
    double weight = 0;
    const auto [end, error] = std::from_chars(text.data() + colon + 1, text.data() + text.size(), weight);
    if (error != std::errc() || end != text.data() + text.size() || !(weight > 0) || !std::isfinite(weight)) {
      throw UsageError(fmt::format("\"{}\": the weight after ':' must be a positive number", text));
    }
    spec = {text.substr(0, colon), weight};
  }
  if (!std::filesystem::exists(spec.path))
    throw UsageError(fmt::format("{}: no such file or folder", spec.path.string()));
  return spec;
}

std::vector<std::string> read_documents(const std::filesystem::path& path) {
  if (std::filesystem::is_directory(path)) {
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(path)) {
      if (entry.path().extension() == ".txt") files.push_back(entry.path());
    }
    std::sort(files.begin(), files.end());
    if (files.empty()) throw ConfigError(fmt::format("{}: the folder holds no .txt files", path.string()));
    std::vector<std::string> documents;
    for (const auto& file : files) documents.push_back(read_text(file));
    return documents;
  }
  if (path.extension() == ".jsonl") return read_jsonl(path);
  return {read_text(path)};
}

bool is_token_file(const std::filesystem::path& path) {
  const std::string extension = path.extension().string();
  return extension == ".h5" || extension == ".hdf5" || extension == ".npy" || extension == ".bin" ||
         extension == ".ids";
}

std::vector<int64_t> read_token_file(const std::filesystem::path& path) { return read_token_dataset(path).ids; }

namespace {

/// Ids that the tokenizer knows.
TokenDataset read_known_tokens(const Tokenizer& tokenizer, const std::filesystem::path& path) {
  TokenDataset dataset = read_token_dataset(path);
  for (const int64_t id : dataset.ids) {
    if (id < 0 || id >= tokenizer.vocab_size()) {
      throw ConfigError(fmt::format("{}: token id {} is outside of the model's vocabulary of {}", path.string(), id,
                                    tokenizer.vocab_size()));
    }
  }
  return dataset;
}

}  // namespace

std::vector<int64_t> tokenize_corpus(const Tokenizer& tokenizer, const std::filesystem::path& path) {
  if (is_token_file(path)) return read_known_tokens(tokenizer, path).ids;
  return tokenizer.encode(fmt::format("{}", fmt::join(read_documents(path), "\n\n")), false);
}

TokenDataset tokenize_documents(const Tokenizer& tokenizer, const std::filesystem::path& path,
                                const DocumentMarks& marks) {
  if (is_token_file(path)) {
    TokenDataset dataset = read_known_tokens(tokenizer, path);
    if (dataset.documents.empty() && (marks.first || marks.last))
      dataset.documents = documents_by_marks(dataset.ids, marks);
    return dataset;
  }
  TokenDataset dataset{.ids = {}, .vocab_size = tokenizer.vocab_size(), .tokenizer_digest = ""};
  for (const std::string& text : read_documents(path)) {
    const std::vector<int64_t> ids = tokenizer.encode(text, false);
    if (ids.empty()) continue;
    dataset.documents.push_back(static_cast<int64_t>(dataset.ids.size()));
    if (marks.first) dataset.ids.push_back(*marks.first);
    dataset.ids.insert(dataset.ids.end(), ids.begin(), ids.end());
    if (marks.last) dataset.ids.push_back(*marks.last);
  }
  return dataset;
}

TokenWindows disjoint_windows(const std::vector<int64_t>& ids, int64_t length) {
  if (length <= 0) throw UsageError(fmt::format("windows of {} tokens: the length must be positive", length));
  TokenWindows result{length, {}, {}};
  for (size_t begin = 0; begin + static_cast<size_t>(length) <= ids.size(); begin += static_cast<size_t>(length)) {
    result.windows.emplace_back(ids.begin() + static_cast<int64_t>(begin),
                                ids.begin() + static_cast<int64_t>(begin) + length);
  }
  return result;
}

TokenWindows calibration_windows(const Tokenizer& tokenizer, const std::vector<CorpusSpec>& sources, int64_t count,
                                 int64_t length) {
  double total = 0;
  for (const CorpusSpec& source : sources) total += source.weight;
  std::vector<TokenWindows> available;
  std::vector<int64_t> wanted, taken(sources.size(), 0);
  int64_t assigned = 0;
  for (size_t s = 0; s < sources.size(); ++s) {
    available.push_back(disjoint_windows(tokenize_corpus(tokenizer, sources[s].path), length));
    const bool last = s + 1 == sources.size();
    wanted.push_back(last ? count - assigned : std::llround(static_cast<double>(count) * sources[s].weight / total));
    assigned += wanted.back();
    const auto held = static_cast<int64_t>(available.back().windows.size());
    if (held < wanted.back()) {
      throw ConfigError(fmt::format("{}: holds {} windows of {} tokens, {} are needed for its share",
                                    sources[s].path.string(), held, length, wanted.back()),
                        "give more text, or fewer --calibration-tokens");
    }
  }
  // Round robin by weight, windows spread evenly over each source.
  TokenWindows result{length, {}, {}};
  while (static_cast<int64_t>(result.windows.size()) < count) {
    size_t next = 0;
    double lowest = 2;
    for (size_t s = 0; s < sources.size(); ++s) {
      const double progress = wanted[s] == 0 ? 1 : static_cast<double>(taken[s]) / static_cast<double>(wanted[s]);
      if (progress < lowest) {
        lowest = progress;
        next = s;
      }
    }
    const auto& windows = available[next].windows;
    const size_t position = static_cast<size_t>(taken[next]++) * windows.size() / static_cast<size_t>(wanted[next]);
    result.windows.push_back(windows[position]);
    result.sources.push_back(next);
  }
  return result;
}

}  // namespace cinch
