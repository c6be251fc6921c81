// Decoding of a whole model from caches that are as full as wanted, one way or another, for benchmarks.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "attention/cache_format.h"
#include "attention/decode/decode_kernel.h"
#include "attention/kernels/decode/decode_functions.h"
#include "model/decoder_model.h"

namespace cinch {

struct DecodeRunOptions {
  int64_t batch = 1;    // B
  int64_t context = 0;  // tokens of each sequence before the last step
  int64_t steps = 0;    // that will follow
  CacheFormat cache_format = CacheFormat::sixteen_bit;
  DecodeKernel kernel = DecodeKernel::automatic;
  bool graphs = true;
};

class DecodeRun {
 public:
  virtual ~DecodeRun() = default;
  /// The next token of every sequence, the most likely one; enqueues, and may wait for the device.
  virtual void step() = 0;
  /// What attends: names of kernels.
  virtual std::string kernel() const = 0;
  virtual bool graph() const { return false; }
  /// Why not what would be faster; may be empty.
  virtual std::string note() const { return {}; }
  virtual int64_t cache_bytes_allocated() const = 0;
};

/// In a DecodeSession where `functions` have a kernel for some layer, else as DecoderModel::forward does. `model` must
/// outlive it. Throws UnsupportedError where a kernel is asked for that does not cover a layer, and for caches below 16
/// bits without kernels, which would be emulated.
std::unique_ptr<DecodeRun> make_decode_run(const DecoderModel& model, const DecodeRunOptions& options,
                                           const DecodeFunctions* functions);

/// DecoderModel::forward over one growing KvCache per layer, all sequences at once.
std::unique_ptr<DecodeRun> plain_run(const DecoderModel& model, const DecodeRunOptions& options);

/// What the caches of either run take at most: plain ones grow by doubling when they are full, those of a session are
/// whole pages.
int64_t plain_cache_bytes(const ModelConfig& config, int64_t element_bytes, const DecodeRunOptions& options);
int64_t session_cache_bytes(const ModelConfig& config, const DecodeRunOptions& options);

}  // namespace cinch
