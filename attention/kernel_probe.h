// What a layer asks of the attention kernels, without the layer: for saying what will run before anything does.
#pragma once

#include "attention/attention_kernel.h"

namespace cinch {

struct KernelProbe {
  int64_t batch = 1, queries = 1, keys = 1;  // the queries are the last tokens of the keys
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
  bool recorded = false;  // for training
};

/// The request that a layer of this spec makes: shapes, types and features are its, the numbers are not set.
AttentionRequest probe_request(const AttentionSpec& spec, const KernelProbe& probe);

}  // namespace cinch
