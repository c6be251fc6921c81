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
  virtual int64_t cache_bytes_allocated() const = 0;
};

/// DecoderModel::forward over one growing KvCache per layer, filled with random numbers. `model` must outlive it.
std::unique_ptr<DecodeRun> plain_run(const DecoderModel& model, at::ScalarType dtype, at::Device device,
                                     const DecodeRunOptions& options);

/// What a plain run takes at most beside the weights: its caches grow by doubling when they are full.
int64_t plain_cache_bytes(const ModelConfig& config, int64_t element_bytes, const DecodeRunOptions& options);

}  // namespace cinch
