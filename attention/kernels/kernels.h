// The kernels that kernel_list.cpp lists, and what they share: which keys a query sees, and the walk over blocks of
// queries that bounds their memory whatever the length of the sequence.
#pragma once

#include <functional>
#include <vector>

#include "attention/attention_kernel.h"

namespace cinch {

/// The obvious formula; takes every request.
const AttentionKernel& reference_kernel();
/// ATen's scaled_dot_product_attention (flash form on CPU).
const AttentionKernel& sdpa_kernel();
/// ATen's flash attention on CUDA for documents and windows.
const AttentionKernel& flash_kernel();
/// cuDNN's graphs on CUDA, for training and long prompts: values of another width than the keys, shared key heads
/// and windows without copies.
const AttentionKernel& cudnn_kernel();
/// Our own kernels on CUDA for whatever the others do not cover (prefill_kernel.h).
const AttentionKernel& prefill_kernel();

/// The first of `kernels` that covers the request, passes its check and does not leave it; else the first that leaves
/// it, and where there is none the last, which takes everything.
const AttentionKernel& first_taker(const std::vector<const AttentionKernel*>& kernels, const AttentionRequest& request);

/// (T, S) bool: which keys each query sees (causal, window); (B, 1, T, S) where there are documents.
at::Tensor visible_keys(const AttentionRequest& request);
/// True when no query has a key outside of its window.
bool window_is_idle(const AttentionRequest& request);

/// Cuts the request into blocks of at most `block` queries, each with only the keys that some query of the block sees,
/// runs `kernel` on each and joins the results along T.
at::Tensor run_in_query_blocks(const AttentionRequest& request, int64_t block,
                               const std::function<at::Tensor(const AttentionRequest&)>& kernel);

/// Tokens of each document, sequence by sequence; a sequence begins one. Reads the documents on the host.
std::vector<int64_t> document_lengths(const AttentionRequest& request);

/// Runs `kernel` on each document by itself and joins the results, for requests whose keys are those of the queries: no
/// mask, and no work on pairs of tokens that do not see each other. Reads the documents on the host.
at::Tensor run_by_document(const AttentionRequest& request,
                           const std::function<at::Tensor(const AttentionRequest&)>& kernel);

}  // namespace cinch
