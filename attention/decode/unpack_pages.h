// Pages of bytes (kernels/decode/page_layout.h) back to rows, on the device that they are on.
#pragma once

#include <ATen/core/Tensor.h>

#include "attention/cache_format.h"

namespace cinch {

/// pages (n, page bytes) uint8 of a format below 16 bits: rows (n * 64, columns) in `type`, the bits of unpacked_rows.
at::Tensor unpack_pages(const at::Tensor& pages, CacheFormat format, const CacheColumns& columns, at::ScalarType type);

}  // namespace cinch
