// Token ids on disk: cinch's HDF5 datasets, and the flat formats of other projects (llm.c, nanoGPT, Megatron), read
// only.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace cinch {

struct TokenDataset {
  std::vector<int64_t> ids;
  int64_t vocab_size = 0;        // 0 = the file does not say
  std::string tokenizer_digest;  // empty = the file does not say
};

/// One HDF5 file with the dataset "tokens" (u16 when the vocabulary fits, else u32) and the attributes vocab_size,
/// tokenizer_digest. Atomic. Throws ConfigError on an id outside of the vocabulary.
void write_token_dataset(const std::filesystem::path& path, const TokenDataset& dataset);

/// .h5 (ours), .npy (integers), .bin (llm.c with its 1024-byte header, else nanoGPT's raw uint16; Megatron when a .idx
/// lies beside it), and whitespace-separated ids otherwise. Throws ConfigError naming the file and the rule (a number
/// that is none, a length that is not the file's, an id outside of the vocabulary or of int32), CheckpointError for a
/// damaged .h5.
TokenDataset read_token_dataset(const std::filesystem::path& path);

}  // namespace cinch
