// Where sm_90 puts matrices: TMA's 128-byte swizzle, wgmma's shared-memory descriptors and register fragments. Plain
// index arithmetic for host and device, so that it is tested without a GPU. 16-bit elements throughout.
// Source: PTX ISA 9.0, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Operations" (fragments, canonical
// layouts, matrix descriptor) and "Tensor swizzling modes".
#pragma once

#include <cstdint>

#include "attention/kernels/warp/device.h"

namespace cinch::sm90 {

/// A tile of r rows is stored as blocks of 64 columns, each r rows of 128 bytes; a block starts on a multiple of 1024.
constexpr int kBlockColumns = 64;
constexpr int kRowBytes = 128;
constexpr int kSwizzleAtomBytes = 1024;  // 8 rows; the pattern repeats after it
constexpr int kOperandRows = 64;         // M of every wgmma
constexpr int kStep = 16;                // K of every wgmma of 16-bit elements
constexpr int kWarpgroup = 128;

CINCH_HOST_DEVICE constexpr int divided_up(int a, int b) { return (a + b - 1) / b; }

/// Swizzle<3,4,3>: the 16-byte chunk within 128 bytes is exclusive-ored with the row within 8. For addresses whose base
/// is a multiple of 1024.
CINCH_HOST_DEVICE constexpr uint32_t swizzled(uint32_t address) { return address ^ ((address >> 3) & 0x70u); }

/// Byte offset of an element in a tile of `rows` rows.
CINCH_HOST_DEVICE constexpr uint32_t tile_offset(int rows, int row, int column) {
  const int block = column / kBlockColumns, within = column % kBlockColumns;
  return swizzled(static_cast<uint32_t>((block * rows + row) * kRowBytes + within * 2));
}

/// The 64-bit matrix descriptor: addresses and offsets in 16-byte units, 128-byte swizzle (1 in bits 62-63).
CINCH_HOST_DEVICE constexpr uint64_t matrix_descriptor(uint32_t address, uint32_t leading_bytes,
                                                       uint32_t stride_bytes) {
  return static_cast<uint64_t>((address & 0x3FFFFu) >> 4) |
         static_cast<uint64_t>((leading_bytes & 0x3FFFFu) >> 4) << 16 |
         static_cast<uint64_t>((stride_bytes & 0x3FFFFu) >> 4) << 32 | uint64_t{1} << 62;
}

/// K-major operand (rows x 16 columns from column 16 * step on) of the tile at `tile`: groups of 8 rows are 1024 bytes
/// apart; the leading offset is not used with a swizzle.
CINCH_HOST_DEVICE constexpr uint64_t row_operand(uint32_t tile, int rows, int step) {
  constexpr int kSteps = kBlockColumns / kStep;
  const uint32_t offset = static_cast<uint32_t>(step / kSteps * rows * kRowBytes + step % kSteps * kStep * 2);
  return matrix_descriptor(tile + offset, 16, kSwizzleAtomBytes);
}

/// MN-major operand (16 rows from row 16 * step on, as K; columns from a multiple of 64 on, as N) of the tile at
/// `tile`: groups of 64 columns are one block apart, groups of 8 rows 1024 bytes.
CINCH_HOST_DEVICE constexpr uint64_t column_operand(uint32_t tile, int rows, int first_column, int step) {
  const uint32_t block = static_cast<uint32_t>(rows * kRowBytes);
  const uint32_t offset = static_cast<uint32_t>(first_column / kBlockColumns) * block;
  return matrix_descriptor(tile + offset + static_cast<uint32_t>(step * kStep * kRowBytes), block, kSwizzleAtomBytes);
}

/// Row and column of register i of the m64nN accumulator of a thread (0..127 in its warpgroup). Registers 4j, 4j + 1
/// hold two neighbouring columns of one row, 4j + 2, 4j + 3 of the row 8 below.
CINCH_HOST_DEVICE constexpr int fragment_row(int thread, int i) {
  return thread / 32 * 16 + thread % 32 / 4 + (i & 2) * 4;
}
CINCH_HOST_DEVICE constexpr int fragment_column(int thread, int i) { return i / 4 * 8 + thread % 4 * 2 + (i & 1); }

}  // namespace cinch::sm90
