// The prefill kernels' own code, in the warp emulator, against the double-precision reference.
#include <gtest/gtest.h>

#include <stdexcept>

#include "attention/kernels/prefill/emulated_prefill.h"
#include "tests/attention/emulation.h"
#include "tests/attention/prefill_grid.h"

namespace cinch::prefill {
namespace {

using warp::kAmpere;
using warp::kBlackwell;
using warp::kHopper;

class PrefillKernel : public warp::EmulationTest {};

PrefillArrays run(const PrefillCase& c, const Multiprocessor& processor = kHopper, bool last_warp_first = false) {
  PrefillArrays arrays = PrefillBuilder(c, 7).build();
  arrays.point();
  emulate_forward(arrays.work, processor, last_warp_first);
  emulate_backward(arrays.work, processor, last_warp_first);
  return arrays;
}

void expect_good(const PrefillCase& c, const Multiprocessor& processor = kHopper) {
  SCOPED_TRACE(name_of(c));
  static bool last_warp_first = false;
  last_warp_first = !last_warp_first;
  try {
    const PrefillArrays arrays = run(c, processor, last_warp_first);
    PrefillComparison comparison(arrays);
    const ReferenceForward expected = reference_forward(arrays.work);
    comparison.forward(expected);
    comparison.backward(expected, reference_backward(arrays.work));
    EXPECT_TRUE(comparison.errors().good()) << comparison.errors().text();
  } catch (const std::runtime_error& fault) {
    FAIL() << fault.what();
  }
}

void expect_good(std::vector<PrefillCase> cases, const Multiprocessor& processor = kHopper) {
  vary(cases);
  for (const PrefillCase& c : cases) expect_good(c, processor);
}

TEST_F(PrefillKernel, HeadSizes) {
  std::vector<PrefillCase> cases;
  for (const int width : {8, 32, 40, 48, 64, 72, 80, 96, 128}) cases.push_back(sized(3, 1, 40, 40, width, width));
  for (const int width : {136, 192, 248, 256}) cases.push_back(sized(1, 1, 40, 40, width, width));
  expect_good(cases);
}

TEST_F(PrefillKernel, ValuesOfAnotherWidth) {
  expect_good({sized(2, 1, 40, 40, 192, 128), sized(1, 2, 40, 40, 48, 128), sized(1, 2, 40, 40, 128, 40),
               sized(2, 1, 30, 30, 72, 56), sized(1, 1, 40, 40, 32, 256), sized(1, 1, 40, 40, 200, 16)});
}

TEST_F(PrefillKernel, GroupSizes) {
  std::vector<PrefillCase> cases;
  for (const int group : {1, 2, 3, 5, 7, 12}) cases.push_back(sized(group, 2, 37, 37, group % 2 == 0 ? 64 : 40, 32));
  expect_good(cases);
}

TEST_F(PrefillKernel, EdgesOfTiles) {
  std::vector<PrefillCase> cases;
  for (const int tokens : {1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129})
    cases.push_back(sized(1, 1, tokens, tokens, 32, 40));
  for (const int tokens : {10, 11, 21, 22, 43, 44}) cases.push_back(sized(3, 1, tokens, tokens, 32, 32));
  expect_good(cases);
}

TEST_F(PrefillKernel, QueriesThatGoOnFromACache) {
  std::vector<PrefillCase> cases;
  for (const int queries : {1, 5, 63, 64})
    for (const int keys : {64, 65, 129, 150}) cases.push_back(sized(2, 1, queries, keys, 32, 32));
  expect_good(cases);
}

TEST_F(PrefillKernel, Features) {
  for (const PrefillCase& plain : {sized(2, 2, 100, 100, 48, 64), sized(3, 1, 60, 140, 128, 72),
                                   sized(1, 1, 150, 150, 40, 40), sized(1, 1, 70, 70, 160, 136)})
    expect_good(features_of(plain));
}

TEST_F(PrefillKernel, QueriesThatSeeNothing) {
  for (const int width : {32, 80, 144}) expect_good(blind_cases(width));
}

TEST_F(PrefillKernel, SequencesOfABatch) {
  std::vector<PrefillCase> cases(2, sized(2, 3, 33, 50, 40, 32));
  for (PrefillCase& c : cases) c.batch = 3;
  cases[1].documents = true;
  expect_good(cases);
}

/// Other tilings: with less shared memory, fewer warps, rows and slots.
TEST_F(PrefillKernel, OtherDevices) {
  for (const Multiprocessor& processor : {kAmpere, kBlackwell}) {
    expect_good({sized(3, 1, 70, 100, 128, 128), sized(1, 2, 70, 70, 256, 256), sized(2, 1, 50, 130, 192, 128),
                 sized(1, 1, 130, 130, 64, 64)},
                processor);
  }
}

TEST_F(PrefillKernel, SameBitsEveryTime) {
  PrefillCase c = sized(3, 1, 70, 100, 72, 64);
  c.documents = true;
  c.softcap = 4;
  const PrefillArrays once = run(c), again = run(c, kHopper, true);
  EXPECT_EQ(once.out, again.out);
  EXPECT_EQ(once.lse, again.lse);
  EXPECT_EQ(once.d_q, again.d_q);
  EXPECT_EQ(once.d_k, again.d_k);
  EXPECT_EQ(once.d_v, again.d_v);
}

/// Puts NaN into tokens [begin, end) of an array of one head and one sequence.
void poison(std::vector<uint16_t>& data, const CinchPrefillArray& array, int begin, int end, int columns) {
  for (int token = begin; token < end; ++token) {
    for (int i = 0; i < columns; ++i) data[static_cast<size_t>(token * array.token_stride + i)] = kNanBits;
  }
}

/// NaN in keys that no query sees would reach every sum.
TEST_F(PrefillKernel, KeysThatNobodySeesAreNotUsed) {
  PrefillCase c = sized(1, 1, 130, 260, 64, 64);
  c.window = 70;
  PrefillArrays arrays = PrefillBuilder(c, 7).build();
  arrays.point();
  const CinchPrefill& w = arrays.work;
  poison(arrays.k, w.k, 0, w.first_query - c.window + 1, 64);
  poison(arrays.v, w.v, 0, w.first_query - c.window + 1, 64);
  emulate_forward(w, kHopper, false);
  PrefillComparison comparison(arrays);
  comparison.forward(reference_forward(w));
  EXPECT_TRUE(comparison.errors().good()) << comparison.errors().text();
}

/// Two documents: thread blocks of the second touch nothing of the first, neither keys nor rows.
TEST_F(PrefillKernel, TilesOfOtherDocumentsAreSkipped) {
  constexpr int kTokens = 256, kSecond = 128;
  const PrefillCase c = sized(1, 1, kTokens, kTokens, 64, 64);
  const auto second_document = [&](bool poisoned) {
    PrefillArrays arrays = PrefillBuilder(c, 7).build();
    arrays.work.first_keys_stride = kTokens;
    for (int t = 0; t < kTokens; ++t) arrays.first_keys.push_back(t < kSecond ? 0 : kSecond);
    arrays.point();
    const CinchPrefill& w = arrays.work;
    if (poisoned) {
      poison(arrays.q, w.q, 0, kSecond, 64);
      poison(arrays.k, w.k, 0, kSecond, 64);
      poison(arrays.v, w.v, 0, kSecond, 64);
      poison(arrays.d_out, w.d_out, 0, kSecond, 64);
    }
    emulate_forward(w, kHopper, false);
    emulate_backward(w, kHopper, false);
    std::vector<uint16_t> seen;
    for (const auto& [data, array] : {std::pair(&arrays.out, &w.out), std::pair(&arrays.d_q, &w.d_q),
                                      std::pair(&arrays.d_k, &w.d_k), std::pair(&arrays.d_v, &w.d_v)})
      seen.insert(seen.end(), data->begin() + kSecond * array->token_stride, data->end());
    return seen;
  };
  EXPECT_EQ(second_document(true), second_document(false));
}

TEST_F(PrefillKernel, BrokenRulesAreNamed) {
  const auto fault = [](const auto& change) {
    PrefillArrays arrays = PrefillBuilder(sized(2, 1, 4, 4, 32, 32), 7).build();
    arrays.point();
    change(arrays.work);
    try {
      emulate_backward(arrays.work, kHopper, false);
    } catch (const std::runtime_error& error) {
      return std::string(error.what());
    }
    return std::string("none");
  };
  EXPECT_EQ(fault([](CinchPrefill&) {}), "none");
  EXPECT_EQ(fault([](CinchPrefill& w) { w.head_dim = 264; }), "head_dim must be a multiple of 8 in 8..256, found 264");
  EXPECT_EQ(fault([](CinchPrefill& w) { w.v_head_dim = 12; }),
            "v_head_dim must be a multiple of 8 in 8..256, found 12");
  EXPECT_EQ(fault([](CinchPrefill& w) { w.n_kv_heads = 3; }), "n_kv_heads must divide n_heads, found 3");
  EXPECT_EQ(fault([](CinchPrefill& w) { w.scale = 0; }), "scale must be positive, found 0");
  EXPECT_EQ(fault([](CinchPrefill& w) { w.lse = nullptr; }), "the backward needs lse, found 0");
  EXPECT_EQ(fault([](CinchPrefill& w) { w.k.token_stride += 4; }),
            "q, k, v and their strides must be multiples of 16 bytes, found 0");
}

}  // namespace
}  // namespace cinch::prefill
