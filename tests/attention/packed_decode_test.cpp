// The decode kernels over pages of fewer bits than 16, in the warp emulator: against the double-precision reference,
// and bit for bit against the 16-bit kernels over the numbers that the pages hold.
#include <gtest/gtest.h>

#include <array>
#include <stdexcept>

#include "attention/kernels/decode/emulated_decode.h"
#include "attention/kernels/decode/page_numbers.h"
#include "tests/attention/decode_grid.h"
#include "tests/attention/emulation.h"

namespace cinch::decode {
namespace {

class PackedDecode : public EmulationTest {};

/// Results of `step`, which are all that is left of it.
struct Results {
  std::vector<uint16_t> out;
  std::vector<float> lse;
};
Results run(CinchDecodeStep step, const DecodeArrays& like, const Multiprocessor& processor, const TilingWish& wish,
            bool last_warp_first) {
  Results results{like.out, like.lse};
  step.out = results.out.data();
  step.lse = results.lse.data();
  run_emulated(step, processor, wish, last_warp_first);
  return results;
}

void expect_good(const DecodeCase& c, TilingWish wish = {}, const Multiprocessor& processor = kHopper) {
  SCOPED_TRACE(name_of(c));
  static bool last_warp_first = false;
  last_warp_first = !last_warp_first;
  try {
    DecodeArrays arrays = CaseBuilder(c, 11).build();
    arrays.point();
    if (wish.parts == 0) wish.parts = 3;
    Tiling tiling{};
    std::array<char, 256> refusal{};
    ASSERT_TRUE(choose_tiling(arrays.step, processor, wish, tiling, refusal.data(), refusal.size())) << refusal.data();
    const Results found = run(arrays.step, arrays, processor, wish, last_warp_first);
    const SixteenBitStep twin = in_sixteen_bits(arrays.step);
    wish.slabs = 0;  // the same order of sums
    wish.row_tiles = tiling.row_tiles;
    wish.row_groups = tiling.row_groups;
    wish.warps = tiling.warps;
    const Results expected = run(twin.step, arrays, processor, wish, last_warp_first);
    EXPECT_EQ(found.out, expected.out) << "other bits than the 16-bit kernel's";
    for (size_t i = 0; i < found.lse.size(); ++i) EXPECT_EQ(found.lse[i], expected.lse[i]);
    arrays.out = found.out;
    arrays.lse = found.lse;
    const DecodeErrors errors = compare(arrays, reference_decode(arrays.step));
    EXPECT_TRUE(errors.good()) << errors.text();
  } catch (const std::runtime_error& fault) {
    FAIL() << fault.what();
  }
}
void expect_good(const std::vector<DecodeCase>& cases) {
  for (const DecodeCase& c : cases) expect_good(c);
}

const std::vector<int32_t> kLengths = {1, 0, 70, 130, 64};

TEST_F(PackedDecode, OddRanksAndHeads) {
  std::vector<DecodeCase> cases;
  for (const int rank : {16, 40, 72, 104, 144}) {
    for (const int n_heads : {1, 9, 28}) cases.push_back(latent_case(rank, 8 + rank % 3 * 16, n_heads, kLengths));
  }
  cases.push_back(latent_case(128, 128, 16, kLengths));
  cases.push_back(latent_case(328, 64, 17, {3, 129}));
  expect_good(packed(cases));
}

TEST_F(PackedDecode, LargeRanksAndManyHeads) {
  const std::vector<DecodeCase> cases = {latent_case(512, 64, 33, {65}), latent_case(64, 64, 128, {70, 3}),
                                         latent_case(1024, 8, 3, {80})};
  expect_good(packed(cases));
}

TEST_F(PackedDecode, Features) {
  expect_good(packed(latent_features(72, 24, 12, {90, 0, 3, 128})));
  expect_good(packed(latent_features(136, 8, 20, {65, 200})));
}

TEST_F(PackedDecode, WindowsThatBeginInsideAndBeyondPages) {
  for (const int window : {1, 5, 63, 64, 65, 100}) {
    DecodeCase c = latent_case(40, 16, 5, {64, 65, 128, 200, 191, 7});
    c.window = window;
    expect_good(packed({c}));
  }
}

/// Stages that are just enough, steps of fewer slabs, more threads.
TEST_F(PackedDecode, StagesOfAnyNumberAndSize) {
  for (const int format : kPackedFormats) {
    for (const int warps : {1, 2, 4}) {
      for (const int stages : {1, 2, 3, 7}) {
        TilingWish wish;
        wish.warps = warps;
        wish.slabs = stages;
        DecodeCase c = latent_case(72, 24, 12, {200, 20});
        c.cache_format = format;
        c.key_scales = stages == 2;
        c.n_kv_heads = 3;
        expect_good(c, wish);
        if (stages != 3) continue;
        c.n_heads = 40;
        c.window = 150;
        expect_good(c, wish);
      }
    }
  }
}

TEST_F(PackedDecode, OtherMultiprocessors) {
  for (const Multiprocessor& processor : {kAmpere, kBlackwell}) {
    for (const int rank : {40, 256, 512}) {
      for (DecodeCase c : packed({latent_case(rank, 64, 20, {150, 64, 1})})) expect_good(c, {}, processor);
    }
  }
}

TEST_F(PackedDecode, ChannelsBeyondFp16) {
  for (const float huge : {1.0F, 1e4F, 1e6F}) expect_good(huge_case(huge));
}

TEST_F(PackedDecode, ManyPartsOfASequence) {
  TilingWish wish;
  wish.parts = 9;
  for (DecodeCase c : packed({latent_case(48, 16, 6, {1000, 0, 70})})) {
    expect_good(c, wish);
    c.v_head_dim = 24;
    expect_good(c, wish);
  }
}

std::string refusal(const CinchDecodeStep& step) {
  try {
    run_emulated(step, kHopper, {}, false);
  } catch (const std::runtime_error& fault) {
    return fault.what();
  }
  return "";
}
TEST_F(PackedDecode, RefusalsNameRuleAndValue) {
  DecodeCase c = latent_case(64, 16, 4, {70});
  c.cache_format = CINCH_CACHE_INT4;
  DecodeArrays arrays = CaseBuilder(c, 1).build();
  arrays.point();
  CinchDecodeStep step = arrays.step;
  EXPECT_EQ(refusal(step), "");
  step.block_table = nullptr;
  EXPECT_EQ(refusal(step), "a cache below 16 bits needs a block_table");
  step = arrays.step;
  step.open.data = nullptr;
  EXPECT_EQ(refusal(step), "an int4 cache needs open pages");
  step = arrays.step;
  step.keys.page_stride = 2816;
  EXPECT_EQ(refusal(step), "page_stride below 16 bits must be a multiple of 16 bytes and hold a page, found 2816");
  step = arrays.step;
  step.open.token_stride = 72;
  EXPECT_EQ(refusal(step), "an open page's token_stride must hold a row, padded to a multiple of 8, found 72");
  step = arrays.step;
  step.cache_format = 4;
  EXPECT_EQ(refusal(step), "cache_format must be 16 bits, int8, fp8 or int4, found 4");
  step = arrays.step;
  step.kind = CINCH_DECODE_GROUPED;
  step.head_dim = 64;
  EXPECT_EQ(refusal(step), "a cache_format below 16 bits needs latent attention, found 0");
}

std::vector<uint16_t> halves(Words4 words) {
  std::vector<uint16_t> result;
  for (const uint32_t word : {words.x, words.y, words.z, words.w}) {
    result.push_back(static_cast<uint16_t>(word & 0xffffu));
    result.push_back(static_cast<uint16_t>(word >> 16));
  }
  return result;
}
/// The fast conversions of 8 numbers have the bits of page_codec.h's for every code, at every place.
template <class T>
void expect_same_numbers() {
  for (const uint16_t scale_bits : {0x0000, 0x0001, 0x3c00, 0x3f80, 0x4123, 0x1234, 0x7b00}) {
    const float scale = Bf16::to_float(scale_bits);
    for (uint32_t code = 0; code < 256; ++code) {
      for (int place = 0; place < 8; ++place) {
        const uint32_t word = code << (8 * (place % 4));
        const Words2 codes = place < 4 ? Words2{word, 0} : Words2{0, word};
        const auto at = static_cast<size_t>(place);
        const auto byte = static_cast<uint8_t>(code);
        ASSERT_EQ(halves(int8_numbers(T(), codes, scale))[at],
                  T::from_float(token_number(CINCH_CACHE_INT8, byte, scale)));
        if ((code & 0x7f) == 0x7f) continue;  // NaN: pages never hold it
        ASSERT_EQ(halves(fp8_numbers(T(), codes, scale))[at],
                  T::from_float(token_number(CINCH_CACHE_FP8, byte, scale)));
      }
    }
  }
  for (const ChannelScale channel : {ChannelScale{0x3c01, 0xb123}, ChannelScale{0x0003, 0x8001},
                                     ChannelScale{0xc780, 0xc880}, ChannelScale{0x8000, 0x4a00}}) {
    const uint32_t scale = channel.scale, zero = channel.zero;
    const Words4 scales{scale | scale << 16, scale << 16, scale, scale | scale << 16},
        zeros{zero | zero << 16, zero << 16, zero, zero | zero << 16};
    Channels8 channels;
    channels.load(scales, zeros);
    for (uint32_t code = 0; code < 16; ++code) {
      for (const size_t place : {size_t{0}, size_t{1}, size_t{3}, size_t{4}, size_t{6}, size_t{7}}) {
        ASSERT_EQ(halves(channels.numbers(T(), code << (4 * place)))[place],
                  T::from_float(channel_number(code, channel_step(channel), channel_zero(channel))));
      }
    }
  }
}
TEST(PageNumbers, EightAtOnceAreThoseOfTheCodec) {
  expect_same_numbers<Bf16>();
  expect_same_numbers<Fp16>();
}

}  // namespace
}  // namespace cinch::decode
