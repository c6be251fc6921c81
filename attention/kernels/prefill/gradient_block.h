// What one thread block of the backward does. It owns rows of queries, or keys, and streams the others: recomputes the
// weights of each pair and their gradients, and adds up
//   of queries   d_q = scale * sum over keys of d_score k
//   of keys      d_k = scale * sum over rows of d_score q
//   of values    d_v = sum over rows of weight d_out
// where d_score = weight * (dot(d_out, v) - delta) * (the soft cap's slope). Each sum has one owner that adds in one
// order: no atomics, the same bits every time. After FlashAttention-2 (arXiv 2307.08691, algorithm 2).
#pragma once

#include "attention/kernels/prefill/row_state.h"
#include "attention/kernels/prefill/tile_products.h"
#include "attention/kernels/warp/tile_math.h"

namespace cinch::prefill {

/// T is Bf16 or Fp16; kPass a GradientPass; kUnits of 16 columns of each sum.
template <class T, int kPass, int kUnits>
class GradientBlock {
 public:
  CINCH_DEVICE GradientBlock(const GradientJob& job, int index, int thread)
      : work_(job.work),
        tiling_(job.tiling),
        place_(place_of(job.work, index)),
        thread_(thread),
        lane_(thread % 32),
        shared_(warp::shared_begin()),
        // What takes longest comes first: the last queries and the first keys.
        first_own_((kOwnKeys ? place_.block : job.tiling.own_blocks - 1 - place_.block) * job.tiling.own_rows),
        streamed_(streamed_range()) {}

  CINCH_DEVICE void run() {
    clear_sums();
    const int rows = tiling_.streamed_rows;
    const int steps = streamed_.begin < streamed_.end ? (streamed_.end - streamed_.begin + rows - 1) / rows : 0;
    if (steps > 0) copy_own();
    for (int i = 0; i < tiling_.slots - 1; ++i) start_step(i, steps);
    for (int step = 0; step < steps; ++step) {
      warp::sync_block();  // nobody reads the slot that is filled next any more
      start_step(step + tiling_.slots - 1, steps);
      warp::copy_wait(tiling_.slots - 1);
      warp::sync_block();
      for (int part = 0; part < rows; part += kPartRows) take_part(step, part);
    }
    finish();
  }

 private:
  static constexpr bool kOwnKeys = kPass != kOfQueries;
  static constexpr bool kScores = kPass != kOfValues;                                // d_score is wanted
  static constexpr bool kWeights = kPass == kOfValues || kPass == kOfKeysAndValues;  // and weights
  static constexpr int kTiles = own_tiles(kPass, kUnits), kOthers = streamed_tiles(kPass, kUnits);
  static constexpr int kWarpRows = kTile * kTiles, kPartRows = kTile * kOthers;

  CINCH_DEVICE int threads() const { return 32 * tiling_.warps; }
  CINCH_DEVICE int warp_own() const { return thread_ / 32 * kWarpRows; }  // first of this warp, in the block
  CINCH_DEVICE int own_end() const { return kOwnKeys ? work_.keys : work_.queries * tiling_.group.divisor; }
  CINCH_DEVICE uint16_t* row_in(const CinchPrefillArray& array, int row) const {
    return head_row(array, tiling_.group.divisor, place_, group_row(tiling_.group, row));
  }

  /// Keys that some own row sees, or rows that see some own key.
  CINCH_DEVICE Range streamed_range() const {
    const int group = tiling_.group.divisor, last = min_of(first_own_ + tiling_.own_rows, own_end()) - 1;
    if (kOwnKeys) {
      const Range queries = queries_of(work_, place_.sequence, {first_own_, last + 1});
      return {queries.begin * group, queries.end * group};
    }
    return {keys_of(work_, place_.sequence, tiling_.group.quotient(first_own_)).begin,
            keys_of(work_, place_.sequence, tiling_.group.quotient(last)).end};
  }

  CINCH_DEVICE void clear_sums() {
    CINCH_UNROLL
    for (int i = 0; i < kTiles * kUnits * 8; ++i) {
      if (kScores) (&score_sums_[0][0][0][0])[i] = 0;
      if (kWeights) (&weight_sums_[0][0][0][0])[i] = 0;
    }
  }

  /// Columns of q or k, of d_out or v, and the states of rows, from `first` on to the place `to`, of one side.
  template <bool kKeys>
  CINCH_DEVICE void copy_side(Shared to, int values_offset, int states_offset, int first, int count, int end,
                              bool with_values) const {
    const auto copy = [&](Shared target, const CinchPrefillArray& of_keys, const CinchPrefillArray& of_rows, int pitch,
                          int columns) {
      copy_rows(target, pitch, columns, first, count, end, thread_, threads(),
                [&](int row) { return kKeys ? key_row(of_keys, place_, row) : row_in(of_rows, row); });
    };
    copy(to, work_.k, work_.q, tiling_.key_pitch, work_.head_dim);
    if (with_values)
      copy(to + static_cast<Shared>(values_offset), work_.v, work_.d_out, tiling_.value_pitch, work_.v_head_dim);
    if constexpr (!kKeys) {
      for (int row = thread_; row < count; row += threads()) {
        const bool valid = first + row < end;
        warp::copy_async(to + static_cast<Shared>(states_offset + row * 16),
                         row_state(work_, place_, valid ? first + row : end - 1), valid);
      }
    }
  }
  CINCH_DEVICE void clear_side(Shared to, int values_offset, int count, bool with_values) const {
    clear_tails(to, tiling_.key_pitch, work_.head_dim, count, thread_, threads());
    if (!with_values) return;
    clear_tails(to + static_cast<Shared>(values_offset), tiling_.value_pitch, work_.v_head_dim, count, thread_,
                threads());
  }
  CINCH_DEVICE void copy_own() const {
    clear_side(shared_, tiling_.own_values_offset, tiling_.own_rows, kScores);
    for (int i = 0; i < tiling_.slots; ++i)
      clear_side(slot(i), tiling_.slot_values_offset, tiling_.streamed_rows, true);
    copy_side<kOwnKeys>(shared_, tiling_.own_values_offset, tiling_.own_states_offset, first_own_, tiling_.own_rows,
                        own_end(), kScores);
  }
  CINCH_DEVICE Shared slot(int step) const {
    return shared_ + static_cast<Shared>(tiling_.ring_offset + step % tiling_.slots * tiling_.slot_bytes);
  }
  /// An empty group of copies after the last step.
  CINCH_DEVICE void start_step(int step, int steps) const {
    if (step < steps) {
      copy_side<!kOwnKeys>(slot(step), tiling_.slot_values_offset, tiling_.slot_states_offset,
                           streamed_.begin + step * tiling_.streamed_rows, tiling_.streamed_rows, streamed_.end, true);
    }
    warp::copy_commit();
  }

  CINCH_DEVICE RowState state_at(Shared states, int row) const {
    const warp::Words4 words = warp::shared_words4(states + static_cast<Shared>(row * 16));
    return {warp::float_of_bits(words.x),
            warp::float_of_bits(words.y),
            {static_cast<int>(words.z), static_cast<int>(words.w)}};
  }

  /// Streamed rows [part, part + kPartRows) of a slot, with this warp's own.
  CINCH_DEVICE void take_part(int step, int part) {
    const Shared at = slot(step);
    const int first = streamed_.begin + step * tiling_.streamed_rows + part;
    const int own = first_own_ + warp_own();
    if (first >= streamed_.end || own >= own_end()) return;
    // Rows in memory from `states` on, `row` of them the first and `rows` of them there; keys from `key` on.
    const Shared states = kOwnKeys ? at + static_cast<Shared>(tiling_.slot_states_offset + part * 16)
                                   : shared_ + static_cast<Shared>(tiling_.own_states_offset + warp_own() * 16);
    const int last = kOwnKeys ? min_of(kPartRows, streamed_.end - first) - 1 : min_of(kWarpRows, own_end() - own) - 1;
    const int key = kOwnKeys ? own : first, keys = kOwnKeys ? kWarpRows : kPartRows;
    const Range of_first = state_at(states, 0).keys, of_last = state_at(states, last).keys;
    if (key >= of_last.end || key + keys <= of_first.begin) return;
    const bool masked = key < of_last.begin || key + keys > of_first.end;

    Products<kTiles, kOthers> weights;
    multiply_rows<T, kTiles, kOthers>(weights, own_address(0, tiling_.key_pitch), kTile * tiling_.key_pitch,
                                      part_address(at, part, tiling_.key_pitch) + other_lane(lane_, tiling_.key_pitch),
                                      kTile * tiling_.key_pitch, units_of(work_.head_dim));
    Products<kTiles, kOthers> scores;
    const Shared values = part_address(at + static_cast<Shared>(tiling_.slot_values_offset), part, tiling_.value_pitch);
    if constexpr (kScores) {
      multiply_rows<T, kTiles, kOthers>(scores, own_address(tiling_.own_values_offset, tiling_.value_pitch),
                                        kTile * tiling_.value_pitch, values + other_lane(lane_, tiling_.value_pitch),
                                        kTile * tiling_.value_pitch, units_of(work_.v_head_dim));
    }
    differentiate(weights, scores, states, key, masked);
    Factors<kTiles, kOthers> factors;
    if constexpr (kWeights) {
      round_products<T, kTiles, kOthers>(factors, weights);
      add_products<T, kTiles, kOthers, kUnits>(weight_sums_, factors, values + added_lane(lane_, tiling_.value_pitch),
                                               kTile * tiling_.value_pitch, units_of(work_.v_head_dim));
    }
    if constexpr (kScores) {
      round_products<T, kTiles, kOthers>(factors, scores);
      add_products<T, kTiles, kOthers, kUnits>(
          score_sums_, factors, part_address(at, part, tiling_.key_pitch) + added_lane(lane_, tiling_.key_pitch),
          kTile * tiling_.key_pitch, units_of(work_.head_dim));
    }
  }
  CINCH_DEVICE Shared own_address(int offset, int pitch) const {
    return shared_ + static_cast<Shared>(offset + warp_own() * pitch) + own_lane(lane_, pitch);
  }
  CINCH_DEVICE static Shared part_address(Shared at, int part, int pitch) {
    return at + static_cast<Shared>(part * pitch);
  }

  /// Dot products of q and k become weights, those of d_out and v gradients of scores (but for the scale).
  CINCH_DEVICE void differentiate(Products<kTiles, kOthers>& weights, Products<kTiles, kOthers>& scores, Shared states,
                                  int first_key, bool masked) const {
    if constexpr (kOwnKeys) {
      CINCH_UNROLL
      for (int j = 0; j < kOthers * 4; ++j) {
        const int n = j / 4, half = j / 2 % 2;
        const RowState state = state_at(states, kTile * n + other_row(lane_, half, j));
        CINCH_UNROLL
        for (int m = 0; m < kTiles; ++m) {
          CINCH_UNROLL
          for (int i = j % 2; i < 4; i += 2) {
            const int key = first_key + kTile * m + own_row(lane_, i);
            differentiate(weights[m][n][half][i], scores[m][n][half][i], state, key, masked);
          }
        }
      }
    } else {
      CINCH_UNROLL
      for (int m = 0; m < kTiles; ++m) {
        CINCH_UNROLL
        for (int row = 0; row < 2; ++row) {
          const RowState state = state_at(states, kTile * m + own_row(lane_, 2 * row));
          CINCH_UNROLL
          for (int j = 0; j < kOthers * 4; ++j) {
            const int n = j / 4, half = j / 2 % 2, i = 2 * row + j % 2;
            const int key = first_key + kTile * n + other_row(lane_, half, i);
            differentiate(weights[m][n][half][i], scores[m][n][half][i], state, key, masked);
          }
        }
      }
    }
  }
  CINCH_DEVICE void differentiate(float& weight, float& score, const RowState& state, int key, bool masked) const {
    float slope = 1;
    if (work_.softcap > 0) {
      const float bent = tanhf(weight * work_.scale / work_.softcap);
      slope = 1 - bent * bent;
      weight = warp::exp2_fast(work_.softcap * warp::kLog2e * bent - state.lse);
    } else {
      weight = warp::exp2_fast(weight * (work_.scale * warp::kLog2e) - state.lse);
    }
    if (masked && (key < state.keys.begin || key >= state.keys.end)) weight = 0;
    if constexpr (kScores) score = weight * (score - state.delta) * slope;
  }

  CINCH_DEVICE void finish() {
    if constexpr (kWeights) write(work_.d_v, work_.d_v, weight_sums_, 1, work_.v_head_dim);
    if constexpr (kScores) write(work_.d_k, work_.d_q, score_sums_, work_.scale, work_.head_dim);
  }
  CINCH_DEVICE void write(const CinchPrefillArray& of_keys, const CinchPrefillArray& of_rows,
                          Sums<kTiles, kUnits>& sums, float factor, int columns) const {
    const int column = 2 * (lane_ % 4);
    CINCH_UNROLL
    for (int m = 0; m < kTiles; ++m) {
      CINCH_UNROLL
      for (int i = 0; i < kUnits * 8; ++i) (&sums[m][0][0][0])[i] *= factor;
      CINCH_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int own = first_own_ + warp_own() + kTile * m + own_row(lane_, 2 * half);
        if (own >= own_end()) continue;
        uint16_t* const to = kOwnKeys ? key_row(of_keys, place_, own) : row_in(of_rows, own);
        warp::write_row<T>(to + column, sums[m], half, columns - column);
      }
    }
  }

  const CinchPrefill& work_;
  const GradientTiling& tiling_;
  BlockPlace place_;
  int thread_, lane_;
  Shared shared_;
  int first_own_;
  Range streamed_;
  Sums<kScores ? kTiles : 1, kScores ? kUnits : 1> score_sums_;
  Sums<kWeights ? kTiles : 1, kWeights ? kUnits : 1> weight_sums_;
};

}  // namespace cinch::prefill
