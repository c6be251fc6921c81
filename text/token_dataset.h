// Token ids on disk: cinch's HDF5 datasets, and the flat formats of other projects (llm.c, nanoGPT, Megatron), read
// only.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace cinch {

struct TokenDataset {
  std::vector<int64_t> ids;
  int64_t vocab_size = 0;        // 0 = the file does not say
  std::string tokenizer_digest;  // empty = the file does not say
  /// Where each document begins among `ids`: 0, then rising, none of them empty. Empty = the file does not say.
  std::vector<int64_t> documents = {};
};

/// Throws ConfigError naming `origin` when the documents do not begin with 0, do not rise or begin beyond the `tokens`.
void check_documents(const std::vector<int64_t>& documents, size_t tokens, const std::string& origin);

/// Appends ids [begin, end) of `from` and their documents. What is appended begins one; a dataset that does not say is
/// one. `from` may be `to`.
void append_tokens(TokenDataset& to, const TokenDataset& from, size_t begin, size_t end);

/// Ids that stand at the ends of every document.
struct DocumentMarks {
  std::optional<int64_t> first;  // begin of text: a document begins with it
  std::optional<int64_t> last;   // end of text: the document that it ends has it
};

/// Document starts from the marks in `ids`: before every first one, after every last one.
std::vector<int64_t> documents_by_marks(const std::vector<int64_t>& ids, const DocumentMarks& marks);

/// One HDF5 file with the dataset "tokens" (u16 when the vocabulary fits, else u32), the attributes vocab_size,
/// tokenizer_digest, and the dataset "documents" (i64) when there are any. Atomic. Throws ConfigError on an id outside
/// of the vocabulary and on bad documents.
void write_token_dataset(const std::filesystem::path& path, const TokenDataset& dataset);

/// .h5 (ours), .npy (integers), .bin (llm.c with its 1024-byte header, else nanoGPT's raw uint16; Megatron when a .idx
/// lies beside it), and whitespace-separated ids otherwise. Throws ConfigError naming the file and the rule (a number
/// that is none, a length that is not the file's, an id outside of the vocabulary or of int32, documents that are not
/// in order), CheckpointError for a damaged .h5. Documents are known of ours and Megatron's.
TokenDataset read_token_dataset(const std::filesystem::path& path);

}  // namespace cinch
