// Documents and token windows for calibration and evaluation: plain text, jsonl ("text" field) and pre-tokenised files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "text/token_dataset.h"
#include "text/tokenizer.h"

namespace cinch {

/// A text source with its share of the tokens, from "FILE[:WEIGHT]".
struct CorpusSpec {
  std::filesystem::path path;
  double weight = 1.0;
};
/// Throws UsageError on a missing file or a bad weight.
CorpusSpec parse_corpus_spec(const std::string& text);

/// .jsonl: one document per line, its "text"; any other file: one document; folder: every .txt in name order. Throws
/// ConfigError.
std::vector<std::string> read_documents(const std::filesystem::path& path);

/// The ids of read_token_dataset.
std::vector<int64_t> read_token_file(const std::filesystem::path& path);
bool is_token_file(const std::filesystem::path& path);

/// The text (or ids) of a path joined into one id sequence: documents joined with "\n\n" and tokenised once, without
/// special tokens. Throws ConfigError when an id is not in the tokenizer's vocabulary.
std::vector<int64_t> tokenize_corpus(const Tokenizer& tokenizer, const std::filesystem::path& path);

/// The same path for training: documents tokenised one by one, without special tokens but the marks, which every
/// document of a text gets. A file of ids has its own documents; without, those that the marks tell, if any are given.
/// Throws as above.
TokenDataset tokenize_documents(const Tokenizer& tokenizer, const std::filesystem::path& path,
                                const DocumentMarks& marks = {});

/// Calibration windows: `count` windows of `length` tokens, taken from the sources by weight, round robin, evenly
/// spread over each source. Deterministic. Throws ConfigError when a source has too few tokens.
struct TokenWindows {
  int64_t length = 0;
  std::vector<std::vector<int64_t>> windows;  // (W, T)
  std::vector<size_t> sources;                // (W) index of the source of each window; empty for a single text
};
TokenWindows calibration_windows(const Tokenizer& tokenizer, const std::vector<CorpusSpec>& sources, int64_t count,
                                 int64_t length);

/// Disjoint windows from the start, remainder dropped. Throws UsageError when the length is not positive.
TokenWindows disjoint_windows(const std::vector<int64_t>& ids, int64_t length);

}  // namespace cinch
