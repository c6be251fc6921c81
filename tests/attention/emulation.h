// What tests of emulated kernels share.
#pragma once

#include <gtest/gtest.h>

#include "attention/kernels/warp/device.h"

namespace cinch::warp {

// Multiprocessors of sm_80, sm_90 and sm_120 in devices so small that parts are few.
constexpr Multiprocessor kAmpere{3, 167936, 166912}, kHopper{3, 233472, 232448}, kBlackwell{3, 102400, 101376};

/// The emulator's fibres are unknown to ThreadSanitizer.
class EmulationTest : public testing::Test {
 protected:
  void SetUp() override {
#if defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "fibres and ThreadSanitizer do not go together";
#endif
  }
};

}  // namespace cinch::warp
