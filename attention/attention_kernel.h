// Kernels compute softmax(q k^T) v. Each declares what it supports; the dispatcher takes the first of the explicit list
// (kernel_list.cpp) that covers the request and can print why others do not.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "attention/attention_spec.h"

namespace cinch {

struct AttentionRequest {
  at::Tensor q;             // (B, H, T, D), rotated
  at::Tensor k;             // (B, K, S, D), rotated
  at::Tensor v;             // (B, K, S, Dv); Dv may differ from D, and v may be the first Dv columns of k
  int64_t first_query = 0;  // position of query 0
  int64_t first_key = 0;    // position of key 0; causal: a query at t sees keys with position <= t
  double scale = 1.0;
  int64_t window = 0;  // 0 = none
  double softcap = 0;  // 0 = none
  /// (B, T) int64: the position where each query's document begins, before which it sees no key; undefined: all keys
  /// are of one document. RoPE needs no positions of its own in each document: scores depend on distances alone.
  at::Tensor documents = {};
};

class AttentionKernel {
 public:
  virtual ~AttentionKernel() = default;
  virtual std::string name() const = 0;
  /// Empty when this kernel can serve the request, else the missing feature in words.
  virtual std::string missing(const AttentionRequest& request) const = 0;
  /// Why it leaves a request that it covers to a later kernel; empty where it does not. It runs all the same where it
  /// is forced, and where only the reference would take the request.
  virtual std::string leaves(const AttentionRequest&) const { return ""; }
  /// Whether it has to equal the reference on a small request before it is used (kernels/kernel_check.h).
  virtual bool is_checked_first() const { return false; }
  /// (B, H, T, Dv) in q's dtype.
  virtual at::Tensor run(const AttentionRequest& request) const = 0;
};

/// In order of preference; the last is the reference and takes everything.
const std::vector<const AttentionKernel*>& attention_kernels();
/// Runs the first kernel that covers the request and does not leave it, or the forced one. Warns, once per process and
/// reason, when only the reference covers a request whose gradients are recorded and whose scores are many: it holds
/// them all. Throws ShapeError when the documents do not fit the queries, UnsupportedError when a forced kernel does
/// not cover.
at::Tensor attend(const AttentionRequest& request);
/// From now on every request of this process runs on the kernel of this name; "auto" undoes it. Throws UsageError
/// naming the known ones.
void force_attention_kernel(const std::string& name);

struct KernelVerdict {
  std::string kernel;
  bool runs;            // one of all does
  std::string why_not;  // "misses soft cap"; empty where it could or does
};
/// What every kernel says of the request, in order of preference.
std::vector<KernelVerdict> explain_dispatch(const AttentionRequest& request);
/// Softmax probabilities (B, H, T, S) of the same request, by the obvious formula: for calibration and tests.
at::Tensor attention_probabilities(const AttentionRequest& request);

}  // namespace cinch
