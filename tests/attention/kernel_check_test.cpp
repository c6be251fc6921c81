#include "attention/kernels/kernel_check.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include "attention/kernels/kernels.h"
#include "core/errors.h"

namespace cinch {
namespace {

/// The reference, but for one fault.
class FaultyKernel : public AttentionKernel {
 public:
  using Formula = at::Tensor (*)(const AttentionRequest&);
  FaultyKernel(std::string name, Formula formula) : name_(std::move(name)), formula_(formula) {}
  std::string name() const override { return name_; }
  std::string missing(const AttentionRequest&) const override { return ""; }
  at::Tensor run(const AttentionRequest& request) const override {
    ++runs;
    return formula_(request);
  }
  mutable int runs = 0;

 private:
  std::string name_;
  Formula formula_;
};

at::Tensor right(const AttentionRequest& request) { return reference_kernel().run(request); }
at::Tensor broken(const AttentionRequest&) { throw ResourceError("the driver is too old"); }
at::Tensor not_numbers(const AttentionRequest& request) { return right(request) * NAN; }
at::Tensor without(AttentionRequest request, void (*take)(AttentionRequest&)) {
  take(request);
  return right(request);
}
at::Tensor no_window(const AttentionRequest& request) {
  return without(request, [](AttentionRequest& r) { r.window = 0; });
}
at::Tensor no_cap(const AttentionRequest& request) {
  return without(request, [](AttentionRequest& r) { r.softcap = 0; });
}
at::Tensor no_documents(const AttentionRequest& request) {
  return without(request, [](AttentionRequest& r) { r.documents.reset(); });
}
at::Tensor no_positions(const AttentionRequest& request) {
  return without(request, [](AttentionRequest& r) { r.first_query = 0; });
}
at::Tensor first_key_head(const AttentionRequest& request) {
  return without(request, [](AttentionRequest& r) { r.k = r.k.narrow(1, 0, 1).expand(r.k.sizes()); });
}
at::Tensor no_gradient_of_keys(const AttentionRequest& request) {
  return without(request, [](AttentionRequest& r) { r.k = r.k.detach() + 0 * r.k; });
}

AttentionRequest request_of(int64_t queries, int64_t keys) {
  AttentionRequest request;
  request.q = at::zeros({2, 6, queries, 24}, at::kBFloat16);
  request.k = at::zeros({2, 2, keys, 24}, at::kBFloat16);
  request.v = at::zeros({2, 2, keys, 16}, at::kBFloat16);
  request.first_query = keys - queries;
  request.scale = 0.2;
  return request;
}

AttentionRequest with_everything() {
  AttentionRequest request = request_of(300, 300);
  request.window = 50;
  request.softcap = 2;
  request.documents = at::zeros({2, 300}, at::kLong);
  request.q.set_requires_grad(true);
  return request;
}

TEST(KernelCheck, RightKernelsPassOnce) {
  const FaultyKernel kernel("right", &right);
  EXPECT_EQ(failed_check(kernel, with_everything()), "");
  EXPECT_EQ(failed_check(kernel, with_everything()), "");
  EXPECT_EQ(kernel.runs, 1);
  EXPECT_EQ(failed_check(kernel, request_of(3, 200)), "");  // another kind
  EXPECT_EQ(kernel.runs, 2);
}

TEST(KernelCheck, TheProgramsRandomNumbersAreItsOwn) {
  at::manual_seed(5);
  const at::Tensor expected = at::rand({4});
  at::manual_seed(5);
  EXPECT_EQ(failed_check(FaultyKernel("generator", &right), with_everything()), "");
  EXPECT_TRUE(at::equal(at::rand({4}), expected));
}

TEST(KernelCheck, EveryFaultIsFound) {
  const auto fault = [](const char* name, FaultyKernel::Formula formula, const AttentionRequest& request) {
    testing::internal::CaptureStderr();
    const std::string found = failed_check(FaultyKernel(name, formula), request);
    EXPECT_THAT(testing::internal::GetCapturedStderr(), testing::HasSubstr(std::string("attention kernel \"") + name +
                                                                           "\" is not used for this model: " + found));
    return found;
  };
  EXPECT_EQ(fault("broken", &broken, request_of(8, 8)), "the driver is too old");
  for (const auto& [name, formula] : {std::pair{"nan", &not_numbers},
                                      {"window", &no_window},
                                      {"cap", &no_cap},
                                      {"documents", &no_documents},
                                      {"heads", &first_key_head}}) {
    EXPECT_THAT(fault(name, formula, with_everything()), testing::HasSubstr("its result is off by")) << name;
  }
  EXPECT_THAT(fault("positions", &no_positions, request_of(3, 200)), testing::HasSubstr("its result is off by"));
  EXPECT_THAT(fault("gradient", &no_gradient_of_keys, with_everything()), testing::HasSubstr("its result is off by"));
}

}  // namespace
}  // namespace cinch
