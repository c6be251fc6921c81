// Products of tiles that lie in shared memory, in a warp's registers (fragments: warp.h). T is Bf16 or Fp16.
#pragma once

#include "attention/kernels/warp/warp.h"

namespace cinch::prefill {

using warp::Shared;

/// Sums of products of kTiles x 16 own rows (of the warp) with kOthers x 16 other rows: (tile, tile, half of the
/// other's rows, d fragment).
template <int kTiles, int kOthers>
using Products = float[kTiles][kOthers][2][4];
/// The same, rounded: a fragments of kTiles x kOthers tiles.
template <int kTiles, int kOthers>
using Factors = uint32_t[kTiles][kOthers][4];
/// Sums over other rows: (tile, unit of 16 columns, half of the unit, d fragment).
template <int kTiles, int kUnits>
using Sums = float[kTiles][kUnits][2][4];

/// Own row of a d fragment's number i, and other row, within their tiles.
CINCH_DEVICE int own_row(int lane, int i) { return 8 * (i / 2) + lane / 4; }
CINCH_DEVICE int other_row(int lane, int half, int i) { return 8 * half + 2 * (lane % 4) + i % 2; }

/// This lane's part of the address of a tile of rows for what follows: as own rows, as other rows whose products are
/// taken, as other rows that are added up.
CINCH_DEVICE Shared own_lane(int lane, int pitch) { return static_cast<Shared>(lane % 16 * pitch + lane / 16 * 16); }
CINCH_DEVICE Shared other_lane(int lane, int pitch) {
  return static_cast<Shared>((lane / 16 * 8 + lane % 8) * pitch + lane / 8 % 2 * 16);
}
CINCH_DEVICE Shared added_lane(int lane, int pitch) { return own_lane(lane, pitch); }

/// products = own rows times other rows over `units` x 16 columns. Addresses are this lane's; *_bytes lie between
/// tiles.
template <class T, int kTiles, int kOthers>
CINCH_DEVICE void multiply_rows(Products<kTiles, kOthers>& products, Shared own, int own_bytes, Shared other,
                                int other_bytes, int units) {
  CINCH_UNROLL
  for (int i = 0; i < kTiles * kOthers * 8; ++i) (&products[0][0][0][0])[i] = 0;
  CINCH_UNROLL_BY_2
  for (int u = 0; u < units; ++u) {
    uint32_t a[kTiles][4];
    CINCH_UNROLL
    for (int m = 0; m < kTiles; ++m) warp::load_matrices(a[m], own + static_cast<Shared>(m * own_bytes + 32 * u));
    CINCH_UNROLL
    for (int n = 0; n < kOthers; ++n) {
      uint32_t b[4];
      warp::load_matrices(b, other + static_cast<Shared>(n * other_bytes + 32 * u));
      CINCH_UNROLL
      for (int m = 0; m < kTiles; ++m) {
        multiply_add(T(), products[m][n][0], a[m], b[0], b[1]);
        multiply_add(T(), products[m][n][1], a[m], b[2], b[3]);
      }
    }
  }
}

template <class T, int kTiles, int kOthers>
CINCH_DEVICE void round_products(Factors<kTiles, kOthers>& factors, const Products<kTiles, kOthers>& products) {
  CINCH_UNROLL
  for (int m = 0; m < kTiles; ++m) {
    CINCH_UNROLL
    for (int n = 0; n < kOthers; ++n) {
      CINCH_UNROLL
      for (int i = 0; i < 4; ++i)
        factors[m][n][i] = pack(T(), products[m][n][i / 2][i % 2 * 2], products[m][n][i / 2][i % 2 * 2 + 1]);
    }
  }
}

template <bool kAll, class T, int kTiles, int kOthers, int kUnits>
CINCH_DEVICE void add_units(Sums<kTiles, kUnits>& sums, const Factors<kTiles, kOthers>& factors, Shared other,
                            int other_bytes, int units) {
  CINCH_UNROLL
  for (int u = 0; u < kUnits; ++u) {
    if (!kAll && u >= units) break;
    CINCH_UNROLL
    for (int n = 0; n < kOthers; ++n) {
      uint32_t b[4];
      warp::load_matrices_transposed(b, other + static_cast<Shared>(n * other_bytes + 32 * u));
      CINCH_UNROLL
      for (int m = 0; m < kTiles; ++m) {
        multiply_add(T(), sums[m][u][0], factors[m][n], b[0], b[1]);
        multiply_add(T(), sums[m][u][1], factors[m][n], b[2], b[3]);
      }
    }
  }
}
/// sums += factors times other rows, of `units` units. Full sums take a path without branches.
template <class T, int kTiles, int kOthers, int kUnits>
CINCH_DEVICE void add_products(Sums<kTiles, kUnits>& sums, const Factors<kTiles, kOthers>& factors, Shared other,
                               int other_bytes, int units) {
  if (units == kUnits) {
    add_units<true, T, kTiles, kOthers, kUnits>(sums, factors, other, other_bytes, units);
  } else {
    add_units<false, T, kTiles, kOthers, kUnits>(sums, factors, other, other_bytes, units);
  }
}

}  // namespace cinch::prefill
