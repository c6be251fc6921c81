// `bench decode`: whole models' decode steps over batches and contexts, several models and cache formats side by side.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "attention/cache_format.h"
#include "attention/decode/decode_kernel.h"
#include "attention/kernels/decode/decode_functions.h"
#include "core/json.h"
#include "model/model_source.h"

namespace cinch {

struct BenchModel {
  std::string name;
  std::shared_ptr<ModelSource> source;
  bool random_weights = false;  // drawn on the device; of `source` only the config is used
};

struct ModelBenchOptions {
  at::Device device = at::kCPU;
  at::ScalarType dtype = at::kFloat;
  const DecodeFunctions* functions = nullptr;  // that work on the device's memory; null: DecoderModel::forward alone
  std::vector<CacheFormat> formats = {CacheFormat::sixteen_bit};  // below 16 bits: of latents
  std::vector<int64_t> batches, contexts;
  DecodeKernel kernel = DecodeKernel::automatic;
  bool graphs = true;
  int steps = 20;                        // that are timed
  double copy_bytes_per_second = 0;      // of the device's memory; 0: not known
  std::function<int64_t()> free_memory;  // bytes that can be allocated now
};

/// One model, cache format, batch and context.
struct ModelBenchRow {
  std::string model;
  CacheFormat format = CacheFormat::sixteen_bit;
  int64_t batch = 1, context = 0;
  std::string status = "ok";  // or "not covered", "failed", "out of memory", "does not fit"
  std::string reason;         // where there is no time; else why not the kernels, if so
  std::string kernel;         // that attends
  bool graph = false, random_weights = false;
  int steps = 0;
  double seconds = 0, fastest = 0, slowest = 0;  // of a step
  double kv_bytes_per_token = 0;                 // one token of one sequence in all layers
  int64_t cache_bytes = 0;                       // that a step reads: B x tokens that the layers see
  int64_t weight_bytes = 0, read_weight_bytes = 0;

  double tokens_per_second() const { return seconds > 0 ? static_cast<double>(batch) / seconds : 0; }
};

/// Models one after the other, each loaded once; rows as they come. Stops after a row when the user asks to
/// (interrupt_requested). Throws what loading a model throws.
void bench_models(const std::vector<BenchModel>& models, const ModelBenchOptions& options,
                  const std::function<void(const ModelBenchRow&)>& on_row);

/// Bytes of one token of one sequence in all layers; 16-bit formats hold the computation's type.
double kv_bytes_per_token(const ModelConfig& config, CacheFormat format, int64_t element_bytes);
/// What a step reads: layers with a window see no more tokens than that.
int64_t kv_bytes_seen(const ModelConfig& config, CacheFormat format, int64_t element_bytes, int64_t batch,
                      int64_t context);

Json row_json(const ModelBenchRow& row, const ModelBenchOptions& options);

}  // namespace cinch
