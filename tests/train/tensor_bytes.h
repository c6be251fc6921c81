// Counts the bytes of CPU tensors of this thread while it lives: what is held now, and the most that was.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <cstdint>
#include <memory>

namespace cinch {

class TensorBytes {
 public:
  TensorBytes() : counter_(std::make_shared<Counter>()), guard_(c10::DebugInfoKind::PROFILER_STATE, counter_) {}
  int64_t held() const { return counter_->held; }
  int64_t most() const { return counter_->most; }
  void forget_most() { counter_->most = counter_->held; }

 private:
  struct Counter : c10::MemoryReportingInfoBase {
    void reportMemoryUsage(void*, int64_t bytes, size_t, size_t, c10::Device) override {
      held += bytes;
      most = std::max(most, held);
    }
    bool memoryProfilingEnabled() const override { return true; }
    int64_t held = 0, most = 0;
  };
  std::shared_ptr<Counter> counter_;
  c10::DebugInfoGuard guard_;
};

}  // namespace cinch
