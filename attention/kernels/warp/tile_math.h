// Products of tiles in a warp's registers (fragments: warp.h). A warp holds kRowTiles tiles of 16 queries; its sums of
// values are (tile, unit of 16 columns, half of the unit, d fragment). T is Bf16 or Fp16.
#pragma once

#include "attention/kernels/warp/warp.h"

namespace cinch::warp {

/// 16 columns of the queries and of 16 keys.
template <int kRowTiles>
struct Depth {
  uint32_t queries[kRowTiles][4], keys[4];

  CINCH_DEVICE void load(Shared query, int tile_bytes, Shared key, int k) {
    load_matrices(keys, key + static_cast<Shared>(32 * k));
    CINCH_UNROLL
    for (int m = 0; m < kRowTiles; ++m) load_matrices(queries[m], query + static_cast<Shared>(m * tile_bytes + 32 * k));
  }
  template <class T>
  CINCH_DEVICE void multiply(T type, float (&sums)[kRowTiles][2][4]) const {
    CINCH_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      multiply_add(type, sums[m][0], queries[m], keys[0], keys[1]);
      multiply_add(type, sums[m][1], queries[m], keys[2], keys[3]);
    }
  }
};

/// scores (rows, 16 keys) = queries times keys, over `depth` x 16 columns. Addresses are those of this lane's rows of
/// the matrices; tile_bytes lie between two tiles of queries.
template <class T, int kRowTiles>
CINCH_DEVICE void dot_products(float (&scores)[kRowTiles][2][4], Shared queries, int tile_bytes, Shared keys,
                               int depth) {
  // mma waits for its own sum: with one row tile, even and odd depths go to sums of their own.
  constexpr int kChains = kRowTiles == 1 ? 2 : 1;
  float sums[kChains][kRowTiles][2][4];
  CINCH_UNROLL
  for (int i = 0; i < kChains * kRowTiles * 8; ++i) (&sums[0][0][0][0])[i] = 0;
  // Fragments of the next depth are on their way while this one's are multiplied.
  Depth<kRowTiles> even, odd;
  even.load(queries, tile_bytes, keys, 0);
  for (int k = 0; k < depth; k += 2) {
    odd.load(queries, tile_bytes, keys, k + 1 < depth ? k + 1 : k);
    even.multiply(T(), sums[0]);
    if (k + 1 == depth) break;
    even.load(queries, tile_bytes, keys, k + 2 < depth ? k + 2 : k);
    odd.multiply(T(), sums[kChains - 1]);
  }
  CINCH_UNROLL
  for (int i = 0; i < kRowTiles * 8; ++i) {
    float sum = (&sums[0][0][0][0])[i];
    if constexpr (kChains == 2) sum += (&sums[kChains - 1][0][0][0])[i];
    (&scores[0][0][0])[i] = sum;
  }
}

template <int kCount, class T, int kRowTiles, int kUnits>
CINCH_DEVICE void add_units(float (&out)[kRowTiles][kUnits][2][4], const uint32_t (&weights)[kRowTiles][4],
                            Shared values) {
  if constexpr (kCount <= kUnits) {
    CINCH_UNROLL
    for (int u = 0; u < kCount; ++u) {
      uint32_t b[4];
      load_matrices_transposed(b, values + static_cast<Shared>(32 * u));
      CINCH_UNROLL
      for (int m = 0; m < kRowTiles; ++m) {
        multiply_add(T(), out[m][u][0], weights[m], b[0], b[1]);
        multiply_add(T(), out[m][u][1], weights[m], b[2], b[3]);
      }
    }
  }
}
/// out += weights (rows, 16 tokens) times `units` units of the tokens' values.
template <class T, int kRowTiles, int kUnits>
CINCH_DEVICE void add_products(float (&out)[kRowTiles][kUnits][2][4], const uint32_t (&weights)[kRowTiles][4],
                               Shared values, int units) {
  switch (units) {  // without a branch between units
    case 8:
      return add_units<8, T>(out, weights, values);
    case 7:
      return add_units<7, T>(out, weights, values);
    case 6:
      return add_units<6, T>(out, weights, values);
    case 5:
      return add_units<5, T>(out, weights, values);
    case 4:
      return add_units<4, T>(out, weights, values);
    case 3:
      return add_units<3, T>(out, weights, values);
    case 2:
      return add_units<2, T>(out, weights, values);
    case 1:
      return add_units<1, T>(out, weights, values);
    default:
      return;
  }
}

/// factors: of the tiles' rows of this lane and 8 rows further.
template <int kRowTiles, int kUnits>
CINCH_DEVICE void rescale(float (&out)[kRowTiles][kUnits][2][4], const float (&factors)[kRowTiles][2]) {
  CINCH_UNROLL
  for (int m = 0; m < kRowTiles; ++m) {
    CINCH_UNROLL
    for (int u = 0; u < kUnits; ++u) {
      CINCH_UNROLL
      for (int i = 0; i < 4; ++i) {
        out[m][u][0][i] *= factors[m][i / 2];
        out[m][u][1][i] *= factors[m][i / 2];
      }
    }
  }
}

/// Columns below `columns` of one row of a tile, counted from this lane's first one.
template <class T, int kUnits>
CINCH_DEVICE void write_row(uint16_t* to, const float (&out)[kUnits][2][4], int half, int columns) {
  CINCH_UNROLL
  for (int i = 0; i < 2 * kUnits; ++i) {
    if (8 * i >= columns) break;
    *reinterpret_cast<uint32_t*>(to + 8 * i) = pack(T(), out[i / 2][i % 2][2 * half], out[i / 2][i % 2][2 * half + 1]);
  }
}
template <class T, int kUnits>
CINCH_DEVICE void write_row(float* to, const float (&out)[kUnits][2][4], int half, int columns) {
  CINCH_UNROLL
  for (int i = 0; i < 2 * kUnits; ++i) {
    if (8 * i >= columns) break;
    to[8 * i] = out[i / 2][i % 2][2 * half];
    to[8 * i + 1] = out[i / 2][i % 2][2 * half + 1];
  }
}

}  // namespace cinch::warp
