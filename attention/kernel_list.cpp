#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <set>

#include "attention/attention_kernel.h"
#include "attention/kernels/kernel_check.h"
#include "attention/kernels/kernels.h"
#include "attention/recorded.h"
#include "core/errors.h"
#include "core/progress.h"

namespace cinch {

const std::vector<const AttentionKernel*>& attention_kernels() {
  static const std::vector<const AttentionKernel*> kernels = {&flash_kernel(), &cudnn_kernel(), &sdpa_kernel(),
                                                              &prefill_kernel(), &reference_kernel()};
  return kernels;
}

namespace {

/// Why a kernel that is not forced cannot run; empty where it can.
std::string refusal(const AttentionKernel& kernel, const AttentionRequest& request) {
  if (const std::string missing = kernel.missing(request); !missing.empty()) return "misses " + missing;
  if (!kernel.is_checked_first()) return "";
  const std::string fault = failed_check(kernel, request);
  return fault.empty() ? "" : "failed its check: " + fault;
}

}  // namespace

const AttentionKernel& first_taker(const std::vector<const AttentionKernel*>& kernels,
                                   const AttentionRequest& request) {
  const AttentionKernel& last = *kernels.back();
  // Those that leave the request are asked for it last: asking may mean to check them.
  for (const bool leaving : {false, true}) {
    for (const AttentionKernel* kernel : kernels) {
      if (kernel == &last || kernel->leaves(request).empty() == leaving) continue;
      if (refusal(*kernel, request).empty()) return *kernel;
    }
  }
  return last;
}

namespace {

const AttentionKernel* forced = nullptr;

constexpr double kManyScores = 256e6;  // bytes

void check_documents(const AttentionRequest& request) {
  const at::Tensor &documents = request.documents, &q = request.q;
  if (!documents.defined()) return;
  if (documents.scalar_type() == at::kLong && documents.dim() == 2 && documents.size(0) == q.size(0) &&
      documents.size(1) == q.size(2)) {
    return;
  }
  throw ShapeError(fmt::format("documents of {} sequences of {} tokens: expected int64 ({}, {}), found {} ({})",
                               q.size(0), q.size(2), q.size(0), q.size(2), at::toString(documents.scalar_type()),
                               fmt::join(documents.sizes(), ", ")));
}

const AttentionKernel& choose(const AttentionRequest& request) {
  return forced != nullptr ? *forced : first_taker(attention_kernels(), request);
}

/// Why a kernel is not the chosen one; empty where it is, or only comes later.
std::string why_not(const AttentionKernel& kernel, const AttentionKernel& chosen, const AttentionRequest& request) {
  if (&kernel == &chosen) return "";
  if (std::string why = refusal(kernel, request); !why.empty()) return why;
  const std::string leaves = kernel.leaves(request);
  return leaves.empty() ? "" : "leaves " + leaves;
}

/// Memory that grows with the square of the tokens must not come as a surprise.
void warn_of_scores(const AttentionRequest& request) {
  if (!is_recorded({request.q, request.k, request.v})) return;
  const int64_t keys = request.window > 0 ? std::min(request.k.size(2), request.window) : request.k.size(2);
  const auto pairs = static_cast<double>(request.q.size(2)) * static_cast<double>(keys);
  const double bytes = static_cast<double>(request.q.size(0) * request.q.size(1)) * pairs *
                       static_cast<double>(request.q.element_size());
  if (bytes < kManyScores) return;
  std::string why;
  for (const KernelVerdict& verdict : explain_dispatch(request)) {
    if (!verdict.why_not.empty())
      why += fmt::format("{}{} {}", why.empty() ? "" : "; ", verdict.kernel, verdict.why_not);
  }
  static std::mutex mutex;
  static std::set<std::string> said;
  const std::lock_guard lock(mutex);
  if (!said.insert(why).second) return;
  log_warning(
      fmt::format("attention of {} heads over {} tokens runs by the general formula, which holds all scores "
                  "({:.1f} GB per layer) for the gradients: {}",
                  request.q.size(1), request.k.size(2), bytes / 1e9, why.empty() ? "it was asked for" : why));
}

}  // namespace

at::Tensor attend(const AttentionRequest& request) {
  check_documents(request);
  const AttentionKernel& kernel = choose(request);
  if (&kernel == &reference_kernel()) warn_of_scores(request);
  if (&kernel == forced) {
    if (const std::string missing = kernel.missing(request); !missing.empty()) {
      throw UnsupportedError(
          fmt::format("--kernel {} does not cover this attention: it misses {}", kernel.name(), missing),
          "`cinch doctor --kernels MODEL` says what runs and why; without --kernel the first that "
          "covers is taken");
    }
  }
  return kernel.run(request);
}

void force_attention_kernel(const std::string& name) {
  std::map<std::string, const AttentionKernel*> known = {{"auto", nullptr}};
  for (const AttentionKernel* kernel : attention_kernels()) known[kernel->name()] = kernel;
  if (const auto found = known.find(name); found != known.end()) {
    forced = found->second;
    return;
  }
  std::vector<std::string> names;
  for (const auto& [each, kernel] : known) names.push_back(each);
  throw UsageError(fmt::format("--kernel: unknown kernel \"{}\"", name),
                   fmt::format("known: {}", fmt::join(names, ", ")));
}

std::vector<KernelVerdict> explain_dispatch(const AttentionRequest& request) {
  const AttentionKernel& chosen = choose(request);
  std::vector<KernelVerdict> verdicts;
  for (const AttentionKernel* kernel : attention_kernels()) {
    verdicts.push_back({kernel->name(), kernel == &chosen, why_not(*kernel, chosen, request)});
  }
  return verdicts;
}

}  // namespace cinch
