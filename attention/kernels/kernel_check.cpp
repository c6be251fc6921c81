#include "attention/kernels/kernel_check.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <vector>

#include "attention/kernels/kernels.h"
#include "attention/recorded.h"
#include "core/progress.h"

namespace cinch {
namespace {

constexpr int64_t kKeys = 96, kQueriesOfCache = 33, kWindow = 40, kSecondDocument = 31;  // tokens
constexpr double kTolerance = 2e-2;

bool goes_on(const AttentionRequest& request) { return request.first_query > request.first_key; }
bool is_recorded_request(const AttentionRequest& request) { return is_recorded({request.q, request.k, request.v}); }
bool has_window(const AttentionRequest& request) { return !window_is_idle(request); }

std::string kind_of(const AttentionKernel& kernel, const AttentionRequest& request) {
  return fmt::format("{} {} {} {} {} group {} window {} cap {} documents {} cache {} recorded {}", kernel.name(),
                     request.q.device().str(), at::toString(request.q.scalar_type()), request.k.size(3),
                     request.v.size(3), request.q.size(1) / request.k.size(1), has_window(request), request.softcap,
                     request.documents.defined(), goes_on(request), is_recorded_request(request));
}

/// Random numbers that leave the program's own generator alone, rounded to the type.
AttentionRequest small_request(const AttentionRequest& request) {
  const int64_t heads = 2, group = request.q.size(1) / request.k.size(1);
  const int64_t queries = goes_on(request) ? kQueriesOfCache : kKeys;
  at::Generator generator = at::detail::createCPUGenerator(7);
  const auto random = [&](int64_t n_heads, int64_t tokens, int64_t width) {
    return at::randn({1, n_heads, tokens, width}, generator).to(request.q.scalar_type());
  };
  AttentionRequest small = request;
  small.q = random(heads * group, queries, request.k.size(3));
  small.k = random(heads, kKeys, request.k.size(3));
  small.v = random(heads, kKeys, request.v.size(3));
  small.first_key = 0;
  small.first_query = kKeys - queries;
  small.window = has_window(request) ? std::min(request.window, kWindow) : 0;
  if (request.documents.defined()) {
    small.documents = at::zeros({1, queries}, at::kLong);
    small.documents.slice(1, std::max<int64_t>(kSecondDocument - small.first_query, 0)).fill_(kSecondDocument);
  }
  return small;
}

/// Result and, where `recorded`, the gradients of q, k and v for a fixed gradient of the result; on the CPU in fp64.
std::vector<at::Tensor> results_of(const AttentionKernel& kernel, AttentionRequest request, bool recorded) {
  const at::AutoGradMode mode(recorded);
  std::vector<at::Tensor> inputs = {request.q, request.k, request.v};
  if (recorded) {
    for (at::Tensor& input : inputs) input = input.detach().requires_grad_(true);
  }
  request.q = inputs[0];
  request.k = inputs[1];
  request.v = inputs[2];
  std::vector<at::Tensor> results = {kernel.run(request)};
  if (recorded) {
    at::Generator generator = at::detail::createCPUGenerator(8);
    const at::Tensor gradient = at::randn(results.front().sizes(), generator).to(results.front().options());
    for (at::Tensor& each : torch::autograd::grad({results.front()}, inputs, {gradient})) results.push_back(each);
  }
  for (at::Tensor& result : results) result = result.detach().to(at::kCPU, at::kDouble);
  return results;
}

AttentionRequest moved(AttentionRequest request, at::Device device, at::ScalarType type) {
  for (at::Tensor* tensor : {&request.q, &request.k, &request.v}) *tensor = tensor->to(device, type);
  return request;
}

std::string check(const AttentionKernel& kernel, const AttentionRequest& request) try {
  const bool recorded = is_recorded_request(request);
  const AttentionRequest small = small_request(request);
  const auto expected = results_of(reference_kernel(), moved(small, at::kCPU, at::kDouble), recorded);
  const auto found = results_of(kernel, moved(small, request.q.device(), request.q.scalar_type()), recorded);
  double worst = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    const double off = ((found[i] - expected[i]).norm() / expected[i].norm()).item<double>();
    if (!(off <= worst)) worst = off;  // not a number stays
  }
  if (worst < kTolerance) return "";
  return fmt::format("its result is off by {:.2g} of the reference's on {}", worst, request.q.device().str());
} catch (const c10::Error& error) {
  return error.what_without_backtrace();
} catch (const std::exception& error) {
  return error.what();
}

}  // namespace

std::string failed_check(const AttentionKernel& kernel, const AttentionRequest& request) {
  static std::mutex mutex;
  static std::map<std::string, std::string> done;
  const std::string kind = kind_of(kernel, request);
  const std::lock_guard lock(mutex);
  const auto found = done.find(kind);
  if (found != done.end()) return found->second;
  std::string fault = check(kernel, request);
  if (!fault.empty()) {
    log_warning(fmt::format("attention kernel \"{}\" is not used for this model: {}", kernel.name(), fault));
  }
  return done[kind] = fault;
}

}  // namespace cinch
