// libcinch_cudnn.so: the functions of cudnn_abi.h over the plans that are kept.
#pragma GCC visibility push(default)  // all else stays inside (cmake/CinchCudnn.cmake)
#include "attention/kernels/cudnn/cudnn_abi.h"
#pragma GCC visibility pop

#include <algorithm>
#include <cstring>
#include <string>

#include "attention/kernels/cudnn/cuda/graph.h"
#include "attention/kernels/cudnn/plan_cache.h"

namespace cinch::cudnn {
namespace {

// A plan holds a compiled kernel, some hundred KiB. Two passes of 64 layouts; a training run has one or two.
constexpr size_t kKeptPlans = 128;

static_assert(sizeof(CinchCudnnShape) == 29 * sizeof(int64_t) + sizeof(float) + 3 * sizeof(int32_t), "has no padding");

/// A plan, or why there is none.
struct Outcome {
  std::unique_ptr<Plan> plan;
  std::string refusal;
};

/// Leaked: plans hold modules of CUDA, which may be gone before the program's static objects.
PlanCache<Outcome>& plans() {
  static auto* const cache = new PlanCache<Outcome>(kKeptPlans);
  return *cache;
}

std::string key_of(const CinchCudnnShape& shape, const CinchCudnnTarget& target) {
  std::string key(reinterpret_cast<const char*>(&shape), sizeof shape);
  key += std::to_string(target.device) + "/" + std::to_string(target.compute_capability) + "/";
  return target.properties != nullptr ? key + target.properties : key;
}

std::shared_ptr<const Outcome> build(const CinchCudnnShape& shape, const CinchCudnnTarget& target) {
  auto outcome = std::make_shared<Outcome>();
  try {
    if (target.properties != nullptr) {
      outcome->plan = build_plan(shape, target, nullptr);
    } else {
      const BorrowedHandle handle(target.device);
      outcome->plan = build_plan(shape, target, handle.get());
    }
  } catch (const Refused& refused) {
    outcome->refusal = refused.what();
  }
  return outcome;
}

/// Kept or built. Throws Refused, std::runtime_error.
std::shared_ptr<const Outcome> plan_of(const CinchCudnnShape& shape, const CinchCudnnTarget& target) {
  auto outcome = plans().find_or_build(key_of(shape, target), [&] { return build(shape, target); });
  if (outcome->plan == nullptr) throw Refused(outcome->refusal);
  return outcome;
}

void write_text(char* to, uint64_t size, const char* text) {
  if (to == nullptr || size == 0) return;
  const size_t length = std::min<size_t>(std::strlen(text), size - 1);
  std::memcpy(to, text, length);
  to[length] = 0;
}

/// No exception crosses the border.
template <typename Work>
int32_t guarded(char* error, uint64_t error_size, const Work& work) {
  try {
    return work();
  } catch (const Refused& refused) {
    write_text(error, error_size, refused.what());
    return CINCH_CUDNN_REFUSED;
  } catch (const std::exception& failure) {
    write_text(error, error_size, failure.what());
  } catch (...) {
    write_text(error, error_size, "unknown error");
  }
  return CINCH_CUDNN_FAILED;
}

}  // namespace
}  // namespace cinch::cudnn

using namespace cinch::cudnn;

int32_t cinch_cudnn_version(int64_t* version, char* error, uint64_t error_size) {
  return guarded(error, error_size, [&] {
    *version = library_version();
    return CINCH_CUDNN_OK;
  });
}

int32_t cinch_cudnn_capability(int32_t device, int32_t* capability, char* error, uint64_t error_size) {
  return guarded(error, error_size, [&] {
    *capability = device_capability(device);
    return CINCH_CUDNN_OK;
  });
}

int32_t cinch_cudnn_plan(const CinchCudnnShape* shape, const CinchCudnnTarget* target, int32_t build_it,
                         CinchCudnnPlan* plan, char* error, uint64_t error_size) {
  return guarded(error, error_size, [&]() -> int32_t {
    if (build_it == 0 && plans().find(key_of(*shape, *target)) == nullptr) {
      write_text(error, error_size, "not built yet");
      return CINCH_CUDNN_UNKNOWN;
    }
    const auto outcome = plan_of(*shape, *target);
    plan->workspace_bytes = outcome->plan->workspace_bytes();
    write_text(plan->engine, sizeof plan->engine, outcome->plan->engine().c_str());
    return CINCH_CUDNN_OK;
  });
}

int32_t cinch_cudnn_run(const CinchCudnnShape* shape, const CinchCudnnTarget* target, const CinchCudnnTensors* tensors,
                        void* stream, char* error, uint64_t error_size) {
  return guarded(error, error_size, [&] {
    if (target->properties != nullptr) throw std::runtime_error("a plan of described properties cannot run");
    const auto outcome = plan_of(*shape, *target);
    const BorrowedHandle handle(target->device);
    handle.use_stream(stream);
    outcome->plan->run(handle.get(), *tensors);
    return CINCH_CUDNN_OK;
  });
}

int32_t cinch_cudnn_save(const CinchCudnnShape* shape, const CinchCudnnTarget* target, void* bytes, uint64_t capacity,
                         uint64_t* size, char* error, uint64_t error_size) {
  return guarded(error, error_size, [&] {
    const std::vector<uint8_t> saved = plan_of(*shape, *target)->plan->save();
    *size = saved.size();
    if (saved.size() > capacity) throw std::runtime_error(std::to_string(saved.size()) + " bytes do not fit");
    std::memcpy(bytes, saved.data(), saved.size());
    return CINCH_CUDNN_OK;
  });
}

int32_t cinch_cudnn_load(const CinchCudnnShape* shape, const CinchCudnnTarget* target, const void* bytes, uint64_t size,
                         char* error, uint64_t error_size) {
  return guarded(error, error_size, [&] {
    const auto* begin = static_cast<const uint8_t*>(bytes);
    auto outcome = std::make_shared<Outcome>();
    const BorrowedHandle handle(target->device);
    outcome->plan = load_plan(std::vector<uint8_t>(begin, begin + size), *shape, handle.get());
    plans().keep(key_of(*shape, *target), outcome);
    return CINCH_CUDNN_OK;
  });
}
