// The cache append's own code, in the warp emulator: byte for byte what obvious loops write, and no byte more.
#include <gtest/gtest.h>

#include <array>
#include <set>
#include <stdexcept>

#include "attention/kernels/decode/append_job.h"
#include "attention/kernels/decode/page_pack.h"
#include "tests/attention/append_grid.h"
#include "tests/attention/emulation.h"

namespace cinch::decode {
namespace {

class AppendKernel : public EmulationTest {};

AppendArrays run(const AppendCase& c, bool last_warp_first = false) {
  AppendArrays arrays = AppendBuilder(c, 11).build();
  arrays.point();
  run_emulated(arrays.append, last_warp_first);
  return arrays;
}

/// Where two arrays differ first, or -1.
int64_t first_difference(const std::vector<uint16_t>& a, const std::vector<uint16_t>& b) {
  if (a.size() != b.size()) return 0;
  const auto place = std::mismatch(a.begin(), a.end(), b.begin()).first;
  return place == a.end() ? -1 : place - a.begin();
}

void expect_same(const AppendResult& found, const AppendResult& expected) {
  EXPECT_EQ(first_difference(found.q_out, expected.q_out), -1) << "q_out";
  EXPECT_EQ(first_difference(found.keys, expected.keys), -1) << "keys";
  EXPECT_EQ(first_difference(found.values, expected.values), -1) << "values";
  EXPECT_EQ(first_difference(found.open, expected.open), -1) << "open pages";
}

void expect_good(const std::vector<AppendCase>& cases) {
  bool last_warp_first = false;
  for (const AppendCase& c : cases) {
    SCOPED_TRACE(name_of(c));
    try {
      const AppendResult expected = expected_append(AppendBuilder(c, 11).build());
      expect_same(run(c, last_warp_first).to, expected);
    } catch (const std::runtime_error& fault) {
      ADD_FAILURE() << fault.what();
    }
    last_warp_first = !last_warp_first;
  }
}

TEST_F(AppendKernel, GroupedCaches) { expect_good(grouped_appends()); }
TEST_F(AppendKernel, LatentCachesOf16Bits) { expect_good(latent_appends(CINCH_CACHE_16BIT)); }
TEST_F(AppendKernel, Int8Pages) { expect_good(latent_appends(CINCH_CACHE_INT8)); }
TEST_F(AppendKernel, Fp8Pages) { expect_good(latent_appends(CINCH_CACHE_FP8)); }
TEST_F(AppendKernel, Int4Pages) { expect_good(latent_appends(CINCH_CACHE_INT4)); }

}  // namespace
}  // namespace cinch::decode
