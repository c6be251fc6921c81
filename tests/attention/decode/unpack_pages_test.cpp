#include "attention/decode/unpack_pages.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace cinch {
namespace {

TEST(UnpackPages, GivesTheBitsOfTheHostsLoops) {
  at::manual_seed(4);
  for (const CacheFormat format : {CacheFormat::int8, CacheFormat::fp8, CacheFormat::int4}) {
    for (const CacheColumns& columns : {CacheColumns{24, 8, 0}, CacheColumns{40, 16, 3}, CacheColumns{16, 8, 8}}) {
      for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
        SCOPED_TRACE(name_of(format) + " in " + at::toString(type));
        at::Tensor rows = at::randn({1, 192, columns.all()}) * at::logspace(-4, 4, columns.all(), 10.0, at::kFloat);
        rows.select(2, 3).fill_(2.5);                            // a channel without a range
        rows.narrow(1, 70, 1).fill_(0);                          // a token without one
        if (type == at::kBFloat16) rows.select(2, 5).mul_(1e6);  // beyond fp16: scale and zero in bf16
        rows = rows.clamp(-60000, type == at::kHalf ? 60000 : 1e30).to(type);
        const at::Tensor pages = packed_pages(rows, format, columns);
        const at::Tensor expected = unpacked_rows(pages, 192, format, columns, type);
        EXPECT_TRUE(at::equal(unpack_pages(pages[0], format, columns, type), expected[0]));
      }
    }
  }
}

}  // namespace
}  // namespace cinch
