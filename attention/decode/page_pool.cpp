#include "attention/decode/page_pool.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "attention/decode/unpack_pages.h"
#include "attention/kernels/decode/decode_abi.h"

namespace cinch {
namespace {

constexpr int64_t kPage = CINCH_DECODE_PAGE;

int64_t padded(int64_t columns) { return (columns + 7) / 8 * 8; }

/// Pages [first, end) of a sequence, (end - first, ...), a copy.
at::Tensor pages_of(const at::Tensor& pool, const at::Tensor& table, int64_t sequence, int64_t first, int64_t end) {
  return pool.index_select(0, table.select(0, sequence).narrow(0, first, end - first));
}

int64_t end_page(int64_t end) { return (end + kPage - 1) / kPage; }

}  // namespace

RowPool::RowPool(DecodeBatch& batch, int64_t window, int64_t heads, int64_t width)
    : pages_(at::empty({batch.sizes().sequences * batch.pages_per_sequence(window), heads, kPage, width},
                       at::TensorOptions(batch.sizes().dtype).device(batch.sizes().device))),
      table_(batch.block_table(window)) {}

at::Tensor RowPool::rows(int64_t sequence, int64_t first, int64_t end) const {
  const int64_t begin = first / kPage;
  const at::Tensor taken = pages_of(pages_, table_, sequence, begin, end_page(end));  // (n, heads, 64, width)
  return taken.transpose(0, 1).flatten(1, 2).narrow(1, first - begin * kPage, end - first).unsqueeze(0);
}

PackedPool::PackedPool(DecodeBatch& batch, int64_t window, CacheFormat format, const CacheColumns& columns)
    : table_(batch.block_table(window)), dtype_(batch.sizes().dtype), format_(format), columns_(columns) {
  const auto options = at::TensorOptions(at::kByte).device(batch.sizes().device);
  pages_ =
      at::empty({batch.sizes().sequences * batch.pages_per_sequence(window), page_bytes(format, columns)}, options);
  if (format == CacheFormat::int4)
    open_ = at::empty({batch.sizes().sequences, kPage, padded(columns.all())}, options.dtype(dtype_));
}

at::Tensor PackedPool::rows(int64_t sequence, int64_t first, int64_t end) const {
  const int64_t begin = first / kPage, left = open_.defined() ? end % kPage : 0;
  const int64_t packed = end - left;  // tokens before it are in pages
  std::vector<at::Tensor> parts;
  if (packed > begin * kPage) {
    const at::Tensor pages = pages_of(pages_, table_, sequence, begin, end_page(packed));
    parts.push_back(unpack_pages(pages, format_, columns_, dtype_).narrow(0, 0, packed - begin * kPage).unsqueeze(0));
  }
  if (left > 0) parts.push_back(open_.narrow(0, sequence, 1).narrow(1, 0, left).narrow(2, 0, columns_.all()));
  const at::Tensor rows = parts.size() == 1 ? parts.front() : at::cat(parts, 1);  // (1, S, columns)
  return rows.narrow(1, first - begin * kPage, end - first).unsqueeze(1);
}

void PackedPool::fill() {
  const at::Tensor rows = at::randn({1, kPage, columns_.all()}, at::kFloat).to(dtype_);
  pages_.copy_(packed_pages(rows, format_, columns_).select(0, 0).expand_as(pages_));
  if (open_.defined()) open_.normal_();
}

}  // namespace cinch
