// The decode kernels as the runtime calls them: sizes, plan, run and append through the table of functions.
#include "attention/kernels/decode/decode_functions.h"

#include <gtest/gtest.h>

#include <array>
#include <string>

#include "tests/attention/decode_grid.h"
#include "tests/attention/emulation.h"

namespace cinch::decode {
namespace {

class EmulatedFunctions : public EmulationTest {};

TEST_F(EmulatedFunctions, PlanAndRunWithMemoryOfTheCaller) {
  const DecodeFunctions& functions = emulated_decode_functions();
  std::vector<DecodeCase> cases = {latent_case(40, 16, 9, {70, 0, 130}), latent_case(136, 24, 20, {65}),
                                   grouped_case(48, 3, 3, {1, 200})};
  cases[0].v_head_dim = 24;
  vary(cases);
  for (const DecodeCase& c : cases) {
    SCOPED_TRACE(name_of(c));
    DecodeArrays arrays = CaseBuilder(c, 7).build();
    arrays.point();
    CinchDecodeStep& step = arrays.step;
    CinchDecodeSizes sizes{};
    std::array<char, 256> error{};
    ASSERT_EQ(functions.sizes(&step, &sizes, error.data(), error.size()), 0) << error.data();
    EXPECT_EQ(sizes.parts, 2);
    std::vector<int32_t> plan(sizes.plan_bytes / sizeof(int32_t), -1);
    std::vector<uint64_t> scratch(sizes.scratch_bytes / sizeof(uint64_t), 0);
    step.plan = plan.data();
    step.scratch = scratch.data();
    ASSERT_EQ(functions.plan(plan.data(), sizes.parts, step.lengths, step.batch, step.window, nullptr, error.data(),
                             error.size()),
              0)
        << error.data();
    ASSERT_EQ(functions.run(&step, nullptr, error.data(), error.size()), 0) << error.data();
    const DecodeErrors errors = compare(arrays, reference_decode(step));
    EXPECT_TRUE(errors.good()) << errors.text();
  }
}

TEST_F(EmulatedFunctions, RefusalsNameTheRule) {
  const DecodeFunctions& functions = emulated_decode_functions();
  std::array<char, 256> error{};
  CinchDecodeStep step{};
  CinchDecodeSizes sizes{};
  step.kind = 7;
  EXPECT_EQ(functions.sizes(&step, &sizes, error.data(), error.size()), -1);
  EXPECT_EQ(std::string(error.data()), "kind must be grouped or latent, found 7");
  EXPECT_EQ(functions.run(&step, nullptr, error.data(), error.size()), -1);
  CinchCacheAppend append{};
  append.type = 5;
  EXPECT_EQ(functions.append(&append, nullptr, error.data(), error.size()), -1);
  EXPECT_EQ(std::string(error.data()), "type must be bf16 or fp16, found 5");
}

}  // namespace
}  // namespace cinch::decode
