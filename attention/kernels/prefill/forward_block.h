// What one thread block of the forward does: its rows against all keys that some of them see, with a running softmax.
// FlashAttention-2 (arXiv 2307.08691, algorithm 1).
#pragma once

#include "attention/kernels/prefill/tile_loader.h"
#include "attention/kernels/prefill/tile_products.h"
#include "attention/kernels/prefill/visible_range.h"
#include "attention/kernels/warp/tile_math.h"
#include "attention/kernels/warp/warp.h"

namespace cinch::prefill {

/// T is Bf16 or Fp16.
template <class T, int kRowTiles, int kUnits>
class ForwardBlock {
 public:
  /// Late rows, which see most keys, come first: `index` counts from the last row block.
  CINCH_DEVICE ForwardBlock(const ForwardJob& job, int index, int thread)
      : work_(job.work),
        tiling_(job.tiling),
        thread_(thread),
        lane_(thread % 32),
        shared_(warp::shared_begin()),
        steps_(start(index)) {}

  CINCH_DEVICE void run() {
    clear_state();
    for (int step = 0; step < steps_; ++step) {
      Factors<kRowTiles, kOthers> weights;
      const Shared keys = take_slot();
      const Range block = recalled(kBlockKeys), some = recalled(kSomeKeys), all = recalled(kAllKeys);
      const int key = block.begin + step * kKeyTile;
      const bool sees = key < some.end && key + kKeyTile > some.begin;
      if (sees) weigh(keys, key, key < all.begin || key + kKeyTile > all.end, weights);
      const Shared values = take_slot();
      if (sees) add_values(values, weights);
    }
    finish();
  }

 private:
  static constexpr int kWarpRows = kTile * kRowTiles;
  static constexpr int kOthers = kKeyTile / kTile;

  CINCH_DEVICE int threads() const { return 32 * tiling_.warps; }
  CINCH_DEVICE int rows() const { return work_.queries * tiling_.group.divisor; }
  CINCH_DEVICE int row_of(int first, int tile, int half) const {
    return first + kTile * tile + own_row(lane_, 2 * half);
  }
  CINCH_DEVICE Range keys_of_row(int sequence, int row) const {
    return keys_of(work_, sequence, tiling_.group.quotient(row));
  }
  /// Keys that some of the rows see, and that all see; of rows beyond the last none.
  CINCH_DEVICE Range some_keys(int sequence, int row, int count) const {
    const int last = min_of(row + count, rows()) - 1;
    return row > last ? Range{0, 0} : Range{keys_of_row(sequence, row).begin, keys_of_row(sequence, last).end};
  }
  CINCH_DEVICE Range all_keys(int sequence, int row, int count) const {
    const int last = min_of(row + count, rows()) - 1;
    return row > last ? Range{0, 0} : Range{keys_of_row(sequence, last).begin, keys_of_row(sequence, row).end};
  }

  // What a warp needs once in a step lies in shared memory, as registers are scarce: where its first two rows of
  // queries have their padding.
  enum Recalled { kBlockKeys, kSomeKeys, kAllKeys, kPlace };  // keys that some row of the block, of the warp sees; ...
  CINCH_DEVICE Shared recalled_at(Recalled what) const {
    const int row = thread_ / 32 * kWarpRows + what / 2;
    return shared_ + static_cast<Shared>((row + 1) * tiling_.query_pitch - 16 + what % 2 * 8);
  }
  CINCH_DEVICE Range recalled(Recalled what) const {
    const Shared at = recalled_at(what);
    return {static_cast<int>(warp::shared_word(at)), static_cast<int>(warp::shared_word(at + 4))};
  }
  CINCH_DEVICE void recall(Recalled what, Range range) const {
    if (lane_ != 0) return;
    warp::shared_store(recalled_at(what), static_cast<uint32_t>(range.begin));
    warp::shared_store(recalled_at(what) + 4, static_cast<uint32_t>(range.end));
  }
  /// (first row of this warp, KV head's problem).
  CINCH_DEVICE BlockPlace place() const { return place_of(work_, recalled(kPlace).end); }

  /// The first copies. Returns how many steps there are.
  CINCH_DEVICE int start(int index) {
    const BlockPlace place = place_of(work_, index);
    const int first = (tiling_.row_blocks - 1 - place.block) * tiling_.rows, own = first + thread_ / 32 * kWarpRows;
    const Range keys = some_keys(place.sequence, first, tiling_.rows);
    recall(kBlockKeys, keys);
    recall(kSomeKeys, some_keys(place.sequence, own, kWarpRows));
    recall(kAllKeys, all_keys(place.sequence, own, kWarpRows));
    recall(kPlace, {own, place.sequence * work_.n_kv_heads + place.kv_head});
    if (keys.begin >= keys.end) return 0;
    clear_tails(shared_, tiling_.query_pitch, work_.head_dim, tiling_.rows, thread_, threads());
    copy_rows(shared_, tiling_.query_pitch, work_.head_dim, first, tiling_.rows, rows(), thread_, threads(),
              [&](int row) { return head_row(work_.q, tiling_.group.divisor, place, group_row(tiling_.group, row)); });
    for (int i = 0; i < tiling_.slots - 1; ++i) start_item(place, keys);
    return (keys.end - keys.begin + kKeyTile - 1) / kKeyTile;
  }

  CINCH_DEVICE void clear_state() {
    CINCH_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      CINCH_UNROLL
      for (int half = 0; half < 2; ++half) {
        maximum_[m][half] = warp::minus_infinity();
        sum_[m][half] = 0;
      }
      CINCH_UNROLL
      for (int i = 0; i < kUnits * 8; ++i) (&out_[m][0][0][0])[i] = 0;
    }
  }

  CINCH_DEVICE Shared slot(int item) const {
    return shared_ + static_cast<Shared>(tiling_.ring_offset + item % tiling_.slots * tiling_.slot_bytes);
  }
  /// The next item's copies: keys and values of the steps by turns. An empty group after the last.
  CINCH_DEVICE void start_item(BlockPlace place, Range keys) {
    const int first = keys.begin + started_ / 2 * kKeyTile;
    if (first < keys.end) {
      const bool values = started_ % 2 != 0;
      const CinchPrefillArray& array = values ? work_.v : work_.k;
      const int pitch = values ? tiling_.value_pitch : tiling_.key_pitch;
      const int columns = values ? work_.v_head_dim : work_.head_dim;
      // What the slot held before may have had other tails.
      clear_tails(slot(started_), pitch, columns, kKeyTile, thread_, threads());
      copy_rows(slot(started_), pitch, columns, first, kKeyTile, keys.end, thread_, threads(),
                [&](int key) { return key_row(array, place, key); });
    }
    warp::copy_commit();
    ++started_;
  }
  /// The next item, when it is there; the slot of the one before is given to new copies.
  CINCH_DEVICE Shared take_slot() {
    warp::copy_wait(tiling_.slots - 2);
    warp::sync_block();
    const Shared taken = slot(started_ - (tiling_.slots - 1));
    start_item(place(), recalled(kBlockKeys));
    return taken;
  }

  /// Running softmax: weights exp2(score - maximum) of a tile of keys, new maxima and sums; rescales out_.
  CINCH_DEVICE void weigh(Shared keys, int first_key, bool masked, Factors<kRowTiles, kOthers>& weights) {
    Products<kRowTiles, kOthers> scores;
    multiply_rows<T, kRowTiles, kOthers>(scores,
                                         shared_ + static_cast<Shared>(thread_ / 32 * kWarpRows * tiling_.query_pitch) +
                                             own_lane(lane_, tiling_.query_pitch),
                                         kTile * tiling_.query_pitch, keys + other_lane(lane_, tiling_.key_pitch),
                                         kTile * tiling_.key_pitch, units_of(work_.head_dim));
    if (work_.softcap > 0) cap(scores);
    if (masked) mask(scores, first_key);
    const float scale = (work_.softcap > 0 ? 1.0f : work_.scale) * warp::kLog2e;
    float keep[kRowTiles][2];
    bool changed = false;
    CINCH_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      CINCH_UNROLL
      for (int half = 0; half < 2; ++half) {
        float top = warp::minus_infinity();
        CINCH_UNROLL
        for (int i = 0; i < kOthers * 4; ++i) top = warp::max_of(top, scores[m][i / 4][i / 2 % 2][2 * half + i % 2]);
        top = warp::max_of(top, warp::shuffle_xor(top, 1));
        top = warp::max_of(top, warp::shuffle_xor(top, 2));
        top = warp::max_of(maximum_[m][half], top * scale);
        const float base = top == warp::minus_infinity() ? 0 : top;  // nothing seen yet: all weights are exp2(-inf)
        keep[m][half] = warp::exp2_fast(maximum_[m][half] - base);
        changed = changed || top != maximum_[m][half];
        maximum_[m][half] = top;
        float sum = 0;
        CINCH_UNROLL
        for (int i = 0; i < kOthers * 4; ++i) {
          float& score = scores[m][i / 4][i / 2 % 2][2 * half + i % 2];
          score = warp::exp2_fast(score * scale - base);
          sum += score;
        }
        sum_[m][half] = sum_[m][half] * keep[m][half] + sum;
      }
    }
    round_products<T, kRowTiles, kOthers>(weights, scores);
    if (warp::any(changed)) warp::rescale(out_, keep);
  }
  CINCH_DEVICE void cap(Products<kRowTiles, kOthers>& scores) const {
    CINCH_UNROLL
    for (int i = 0; i < kRowTiles * kOthers * 8; ++i) {
      float& score = (&scores[0][0][0][0])[i];
      score = work_.softcap * tanhf(score * work_.scale / work_.softcap);
    }
  }
  CINCH_DEVICE void mask(Products<kRowTiles, kOthers>& scores, int first_key) const {
    const int sequence = place().sequence, own = recalled(kPlace).begin;
    CINCH_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      CINCH_UNROLL
      for (int half = 0; half < 2; ++half) {
        const Range seen = keys_of_row(sequence, min_of(row_of(own, m, half), rows() - 1));
        CINCH_UNROLL
        for (int i = 0; i < kOthers * 4; ++i) {
          const int key = first_key + kTile * (i / 4) + other_row(lane_, i / 2 % 2, i);
          if (key < seen.begin || key >= seen.end)
            scores[m][i / 4][i / 2 % 2][2 * half + i % 2] = warp::minus_infinity();
        }
      }
    }
  }
  CINCH_DEVICE void add_values(Shared values, const Factors<kRowTiles, kOthers>& weights) {
    add_products<T, kRowTiles, kOthers, kUnits>(out_, weights, values + added_lane(lane_, tiling_.value_pitch),
                                                kTile * tiling_.value_pitch, units_of(work_.v_head_dim));
  }

  CINCH_DEVICE void finish() {
    warp::sync_block();  // without keys nothing was waited for
    const BlockPlace at = place();
    const int own = recalled(kPlace).begin;
    float factors[kRowTiles][2];
    CINCH_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      CINCH_UNROLL
      for (int half = 0; half < 2; ++half) {
        float sum = sum_[m][half];
        sum += warp::shuffle_xor(sum, 1);
        sum += warp::shuffle_xor(sum, 2);
        factors[m][half] = sum > 0 ? 1 / sum : 0;
        const int row = row_of(own, m, half);
        if (work_.lse == nullptr || lane_ % 4 != 0 || row >= rows()) continue;
        const GroupRow place = group_row(tiling_.group, row);
        const int64_t head = int64_t{at.sequence} * work_.n_heads + at.kv_head * tiling_.group.divisor + place.member;
        work_.lse[head * work_.queries + place.token] = (maximum_[m][half] + log2f(sum)) * warp::kLn2;
      }
    }
    warp::rescale(out_, factors);
    const int column = 2 * (lane_ % 4);
    CINCH_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      CINCH_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int row = row_of(own, m, half);
        if (row >= rows()) continue;
        uint16_t* const to = head_row(work_.out, tiling_.group.divisor, at, group_row(tiling_.group, row));
        warp::write_row<T>(to + column, out_[m], half, work_.v_head_dim - column);
      }
    }
  }

  const CinchPrefill& work_;
  const ForwardTiling& tiling_;
  int thread_, lane_;
  Shared shared_;
  int started_ = 0;  // items whose copies are under way or done
  int steps_;
  Sums<kRowTiles, kUnits> out_;
  float maximum_[kRowTiles][2];  // of scores, base 2
  float sum_[kRowTiles][2];      // of this thread's weights
};

}  // namespace cinch::prefill
