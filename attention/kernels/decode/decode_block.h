// What one thread block does with its part of the split plan (tiling.h tells the picture): stream slabs, scores,
// running softmax, sums of values; then whole results where a sequence lies in this part alone, partial ones else.
// Flash decoding (arXiv 2205.14135, section 3.1; split over tokens as in flash-decoding).
#pragma once

#include "attention/kernels/decode/packed_slabs.h"
#include "attention/kernels/decode/results.h"
#include "attention/kernels/decode/slab_loader.h"
#include "attention/kernels/warp/tile_math.h"
#include "attention/kernels/warp/warp.h"

namespace cinch::decode {

/// T is Bf16 or Fp16. kPacked: the cache is in pages of fewer bits than 16.
template <class T, int kRowTiles, int kUnits, int kColumnWarps, bool kPacked = false>
class DecodeBlock {
 public:
  CINCH_DEVICE DecodeBlock(const DecodeJob& job, int part, int head_block, int thread)
      : job_(job),
        step_(job.step),
        tiling_(job.tiling),
        part_(part),
        head_block_(head_block),
        thread_(thread),
        lane_(thread % 32),
        shared_(shared_begin()),
        first_unit_(column_block() * tiling_.block_units + column_warp() * tiling_.warp_units),
        units_(count_units()) {}

  CINCH_DEVICE void run() {
    const SplitPlan plan = SplitPlan::at(const_cast<int32_t*>(step_.plan), tiling_.parts, step_.batch);
    const PlanPoint begin = plan.points[part_], end = plan.points[part_ + 1];
    BlockWalk walk(begin, end, step_.lengths, step_.window);
    if constexpr (kPacked) {
      PackedSlabs<T> slabs(job_, walk, thread_);
      clear_padding();
      slabs.begin();
      take_sequences(walk, plan, [&](int first) {
        slabs.take(walk, first);
        take_step(walk, first);
      });
    } else {
      SlabLoader<(kColumnWarps < 4)> loader(job_, cache_head(), walk, thread_);
      clear_padding();
      const Shared ring = shared_ + static_cast<Shared>(tiling_.ring_offset);
      const int ahead = tiling_.slabs - tiling_.warps;  // slabs on their way while a step is taken
      loader.load(ahead, ring, 0);
      take_sequences(walk, plan, [&](int first) {
        sync_block();  // nobody reads the slabs of the step before any more
        loader.load(tiling_.warps, ring, wrapped(slot_ + ahead));
        copy_wait(ahead);
        sync_block();
        take_step(walk, first);
        slot_ = wrapped(slot_ + tiling_.warps);
      });
    }
    copy_wait(0);
    sync_block();  // shared memory is free for the combine
  }

 private:
  /// step(first) of all steps of the walk, `first` their first token; results of every sequence after its last one.
  template <class Step>
  CINCH_DEVICE void take_sequences(BlockWalk& walk, const SplitPlan& plan, Step step) {
    while (walk.valid()) {
      const int sequence = walk.sequence();
      load_queries(sequence);
      clear_state();
      while (walk.valid() && walk.sequence() == sequence) {
        for (int slab = 0; slab < kBlockSlabs; slab += tiling_.warps) step(walk.block() * kBlockTokens + slab * kSlab);
        walk.next();
      }
      finish(sequence, plan.shares[sequence]);
    }
  }

  static constexpr int kGroupRows = 16 * kRowTiles;

  // Where this thread stands. Computed where needed: registers are scarce, and most of these are used once a sequence.
  CINCH_DEVICE int row_group() const { return thread_ >> (5 + tiling_.warp_bits); }
  CINCH_DEVICE int warp() const { return (thread_ >> 5) & (tiling_.warps - 1); }
  CINCH_DEVICE int team() const { return warp() / kColumnWarps; }
  CINCH_DEVICE int column_warp() const { return warp() % kColumnWarps; }
  CINCH_DEVICE int column_block() const { return head_block_ % tiling_.column_blocks; }
  CINCH_DEVICE int first_row() const {
    return head_block_ / tiling_.column_blocks % tiling_.row_blocks * kGroupRows * tiling_.row_groups;
  }
  CINCH_DEVICE int cache_head() const { return head_block_ / tiling_.column_blocks / tiling_.row_blocks; }
  CINCH_DEVICE int matrix_row() const { return lane_ % 16; }
  /// Value units of this warp: fewer at the end of a block's columns.
  CINCH_DEVICE int count_units() const {
    const int in_block = tiling_.block_units - column_warp() * tiling_.warp_units;
    const int in_all = (tiling_.value_columns + kUnit - 1) / kUnit - first_unit_;
    const int left = in_block < in_all ? in_block : in_all;
    return left < tiling_.warp_units ? left : tiling_.warp_units;
  }
  CINCH_DEVICE int block_rows() const { return kGroupRows * tiling_.row_groups; }
  CINCH_DEVICE int wrapped(int slot) const { return slot < tiling_.slabs ? slot : slot - tiling_.slabs; }
  CINCH_DEVICE Shared slab_address(int index) const {
    return shared_ + static_cast<Shared>(tiling_.ring_offset + wrapped(slot_ + index) * tiling_.slab_bytes);
  }
  CINCH_DEVICE int team_barrier() const { return 1 + row_group() * (tiling_.warps / kColumnWarps) + team(); }
  CINCH_DEVICE void sync_team() const { sync_some(team_barrier(), 32 * kColumnWarps); }
  /// Of the pair (maximum, sum) of a warp's row.
  CINCH_DEVICE Shared state_address(int of_warp, int row) const {
    return shared_ +
           static_cast<Shared>(tiling_.state_offset + ((row_group() * tiling_.warps + of_warp) * kGroupRows + row) * 8);
  }
  CINCH_DEVICE int row_of(int tile, int half) const { return 16 * tile + 8 * half + lane_ / 4; }
  /// Query head of a row of this row group, or -1 beyond the last.
  CINCH_DEVICE int head_of(int row) const {
    const int index = first_row() + row_group() * kGroupRows + row;
    return index < tiling_.rows ? cache_head() * tiling_.rows + index : -1;
  }

  /// The half of the last mma that no key column fills must not hold NaN. Copies never write there.
  CINCH_DEVICE void clear_padding() const {
    if (tiling_.key_columns % 16 == 0) return;
    for (int row = thread_; row < tiling_.slabs * kSlab; row += threads_of()) {
      const int at = tiling_.ring_offset + row / kSlab * tiling_.slab_bytes + row % kSlab * tiling_.key_pitch;
      shared_store(shared_ + static_cast<Shared>(at + tiling_.key_columns * 2), Words4{0, 0, 0, 0});
    }
  }
  CINCH_DEVICE int threads_of() const { return 32 * tiling_.warps * tiling_.row_groups; }

  CINCH_DEVICE void load_queries(int sequence) const {
    const int chunks = (tiling_.key_columns + 15) / 16 * 2;
    for (int i = thread_; i < block_rows() * chunks; i += threads_of()) {
      const int row = i / chunks, chunk = i % chunks, index = first_row() + row;
      Words4 words{0, 0, 0, 0};
      if (index < tiling_.rows && chunk * 8 < tiling_.key_columns)
        words = query_words(sequence, cache_head() * tiling_.rows + index, chunk * 8);
      shared_store(shared_ + static_cast<Shared>(row * tiling_.query_pitch + chunk * 16), words);
    }
  }
  /// 8 columns of the query as it meets a cached row: with rotary keys of KV heads, zeros where another head's stand.
  CINCH_DEVICE Words4 query_words(int sequence, int head, int column) const {
    const uint16_t* const query =
        static_cast<const uint16_t*>(step_.q) + sequence * step_.q_batch_stride + head * step_.q_head_stride;
    if (step_.rope_per_kv_head == 0 || column < tiling_.value_columns)
      return *reinterpret_cast<const Words4*>(query + column);
    const int own = head / (step_.n_heads / step_.n_kv_heads) * step_.qk_rope_head_dim;
    uint32_t words[4] = {0, 0, 0, 0};
    CINCH_UNROLL
    for (int i = 0; i < 8; ++i) {
      const int place = column + i - tiling_.value_columns - own;
      if (place < 0 || place >= step_.qk_rope_head_dim) continue;
      words[i / 2] |= static_cast<uint32_t>(query[tiling_.value_columns + place]) << (16 * (i % 2));
    }
    return {words[0], words[1], words[2], words[3]};
  }

  CINCH_DEVICE void clear_state() {
    CINCH_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      CINCH_UNROLL
      for (int half = 0; half < 2; ++half) {
        maximum_[m][half] = minus_infinity();
        sum_[m][half] = 0;
      }
      CINCH_UNROLL
      for (int u = 0; u < kUnits; ++u) {
        CINCH_UNROLL
        for (int i = 0; i < 4; ++i) out_[m][u][0][i] = out_[m][u][1][i] = 0;
      }
    }
  }

  /// One step: tokens [first, first + 16 warps) of the walk's sequence.
  CINCH_DEVICE void take_step(const BlockWalk& walk, int first) {
    float scores[kRowTiles][2][4];
    multiply_queries(scores);
    const int token = first + warp() * kSlab;  // of this warp's slab
    if (step_.key_scales != 0) scale_scores(scores);
    if (step_.softcap > 0) cap_scores(scores);
    if (token < walk.first() || token + kSlab > walk.length()) mask_scores(scores, walk, token);
    uint32_t weights[kRowTiles][4];
    weigh(scores, weights);
    if constexpr (kColumnWarps > 1) {
      exchange_weights(weights);
      CINCH_UNROLL_BY_1
      for (int slab = 0; slab < kColumnWarps; ++slab) {
        CINCH_UNROLL
        for (int m = 0; m < kRowTiles; ++m) load_matrices(weights[m], weight_address(m, slab));
        add_values(weights, slab_address(team() * kColumnWarps + slab));
      }
    } else {
      add_values(weights, slab_address(warp()));
    }
  }

  CINCH_DEVICE void multiply_queries(float (&scores)[kRowTiles][2][4]) const {
    const int query_row = row_group() * kGroupRows + matrix_row(), key_row = lane_ / 16 * 8 + lane_ % 8;
    const Shared queries = shared_ + static_cast<Shared>(query_row * tiling_.query_pitch + lane_ / 16 * 16);
    const Shared keys = slab_address(warp()) + static_cast<Shared>(key_row * tiling_.key_pitch + lane_ / 8 % 2 * 16);
    dot_products<T>(scores, queries, 16 * tiling_.query_pitch, keys, (tiling_.key_columns + 15) / 16);
  }
  CINCH_DEVICE void scale_scores(float (&scores)[kRowTiles][2][4]) const {
    const int group = step_.n_heads / step_.n_kv_heads;
    const Shared slab = slab_address(warp()) + static_cast<Shared>(tiling_.scale_offset);
    CINCH_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      CINCH_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int head = head_of(row_of(m, half));
        if (head < 0) continue;
        CINCH_UNROLL
        for (int n = 0; n < 2; ++n) {
          CINCH_UNROLL
          for (int j = 0; j < 2; ++j) {
            const int token = 8 * n + 2 * (lane_ % 4) + j;
            scores[m][n][2 * half + j] *=
                T::to_float(shared_half(slab + static_cast<Shared>(token * tiling_.key_pitch + head / group * 2)));
          }
        }
      }
    }
  }
  CINCH_DEVICE void cap_scores(float (&scores)[kRowTiles][2][4]) const {
    CINCH_UNROLL
    for (int i = 0; i < kRowTiles * 8; ++i) {
      float& score = (&scores[0][0][0])[i];
      score = step_.softcap * tanhf(score * step_.scale / step_.softcap);
    }
  }
  CINCH_DEVICE void mask_scores(float (&scores)[kRowTiles][2][4], const BlockWalk& walk, int first) const {
    CINCH_UNROLL
    for (int n = 0; n < 2; ++n) {
      CINCH_UNROLL
      for (int j = 0; j < 2; ++j) {
        const int token = first + 8 * n + 2 * (lane_ % 4) + j;
        if (token >= walk.first() && token < walk.length()) continue;
        CINCH_UNROLL
        for (int m = 0; m < kRowTiles; ++m) scores[m][n][j] = scores[m][n][2 + j] = minus_infinity();
      }
    }
  }

  /// Running softmax: new maxima, weights exp2(score - maximum) in fragments of the values' mma, sums; rescales out_.
  CINCH_DEVICE void weigh(float (&scores)[kRowTiles][2][4], uint32_t (&weights)[kRowTiles][4]) {
    const float scale = score_scale();
    float highest[kRowTiles][2];
    CINCH_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      CINCH_UNROLL
      for (int half = 0; half < 2; ++half) {
        const float a = max_of(scores[m][0][2 * half], scores[m][0][2 * half + 1]);
        float top = max_of(a, max_of(scores[m][1][2 * half], scores[m][1][2 * half + 1]));
        top = max_of(top, shuffle_xor(top, 1));
        highest[m][half] = max_of(top, shuffle_xor(top, 2)) * scale;
      }
    }
    if constexpr (kColumnWarps > 1) exchange_maxima(highest);
    float keep[kRowTiles][2];
    bool changed = false;
    CINCH_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      CINCH_UNROLL
      for (int half = 0; half < 2; ++half) {
        const float top = max_of(maximum_[m][half], highest[m][half]);
        const float base = top == minus_infinity() ? 0 : top;  // nothing seen yet: all weights are exp2(-inf) = 0
        keep[m][half] = exp2_fast(maximum_[m][half] - base);
        changed = changed || top != maximum_[m][half];
        maximum_[m][half] = top;
        float sum = 0;
        CINCH_UNROLL
        for (int n = 0; n < 2; ++n) {
          const float low = exp2_fast(scores[m][n][2 * half] * scale - base);
          const float high = exp2_fast(scores[m][n][2 * half + 1] * scale - base);
          sum += low + high;
          weights[m][2 * n + half] = pack(T(), low, high);
        }
        sum_[m][half] = sum_[m][half] * keep[m][half] + sum;
      }
    }
    if (any(changed)) rescale(out_, keep);
  }
  CINCH_DEVICE float score_scale() const { return (step_.softcap > 0 ? 1.0f : step_.scale) * kLog2e; }

  /// Maxima over the slabs of all warps of the team.
  CINCH_DEVICE void exchange_maxima(float (&highest)[kRowTiles][2]) const {
    CINCH_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      CINCH_UNROLL
      for (int half = 0; half < 2; ++half)
        if (lane_ % 4 == 0) shared_store(state_address(warp(), row_of(m, half)), highest[m][half]);
    }
    sync_team();
    CINCH_UNROLL
    for (int other = 0; other < kColumnWarps; ++other) {
      CINCH_UNROLL
      for (int m = 0; m < kRowTiles; ++m) {
        CINCH_UNROLL
        for (int half = 0; half < 2; ++half) {
          const Shared place = state_address(team() * kColumnWarps + other, row_of(m, half));
          highest[m][half] = max_of(highest[m][half], shared_float(place));
        }
      }
    }
  }
  /// Each warp's weights are of its own slab; the team needs all.
  CINCH_DEVICE void exchange_weights(const uint32_t (&weights)[kRowTiles][4]) const {
    CINCH_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      CINCH_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int row = row_group() * kGroupRows + row_of(m, i % 2),
                  token = warp() * kSlab + i / 2 * 8 + 2 * (lane_ % 4);
        shared_store(shared_ + static_cast<Shared>(tiling_.weight_offset + row * tiling_.weight_pitch + token * 2),
                     weights[m][i]);
      }
    }
    sync_team();
  }
  CINCH_DEVICE Shared weight_address(int tile, int slab) const {
    const int row = row_group() * kGroupRows + 16 * tile + matrix_row();
    return shared_ + static_cast<Shared>(tiling_.weight_offset + row * tiling_.weight_pitch +
                                         (team() * kColumnWarps + slab) * kSlab * 2 + lane_ / 16 * 16);
  }

  /// out_ += weights (rows, 16 tokens) times this warp's columns of the slab's values.
  CINCH_DEVICE void add_values(const uint32_t (&weights)[kRowTiles][4], Shared slab) {
    const Shared values = slab + static_cast<Shared>(tiling_.value_offset + matrix_row() * tiling_.value_pitch +
                                                     lane_ / 16 * 16 + first_unit_ * kUnit * 2);
    add_products<T>(out_, weights, values, units_);
  }

  /// Brings the warps' sums together and writes the sequence's result, or this part's share of it.
  CINCH_DEVICE void finish(int sequence, PlanShare share) {
    float lse[kRowTiles][2];
    publish_state();
    sync_block();
    normalise(lse);
    merge_teams();
    if (team() == 0) write(sequence, share, lse);
    sync_block();  // queries and states of the next sequence may be written
  }

  CINCH_DEVICE void publish_state() const {
    CINCH_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      CINCH_UNROLL
      for (int half = 0; half < 2; ++half) {
        float sum = sum_[m][half];
        sum += shuffle_xor(sum, 1);
        sum += shuffle_xor(sum, 2);
        if (lane_ % 4 != 0) continue;
        shared_store(state_address(warp(), row_of(m, half)), maximum_[m][half]);
        shared_store(state_address(warp(), row_of(m, half)) + 4, sum);
      }
    }
  }
  /// Makes out_ this warp's share of the softmax over all that the block has seen; lse in base 2.
  CINCH_DEVICE void normalise(float (&lse)[kRowTiles][2]) {
    float factors[kRowTiles][2];
    CINCH_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      CINCH_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int row = row_of(m, half);
        float top = minus_infinity(), sum = 0;
        for (int i = 0; i < tiling_.warps; ++i) top = max_of(top, shared_float(state_address(i, row)));
        for (int i = 0; i < tiling_.warps; ++i) {
          const Shared state = state_address(i, row);
          sum += shared_float(state + 4) * exp2_fast(shared_float(state) - top);
        }
        lse[m][half] = top + log2f(sum);
        factors[m][half] = exp2_fast(maximum_[m][half] - top) / sum;
      }
    }
    rescale(out_, factors);
  }
  /// Adds the other teams' out_ to that of team 0, through the memory of the queries, one team at a time.
  CINCH_DEVICE void merge_teams() {
    const int teams = tiling_.warps / kColumnWarps;
    const Shared mine =
        shared_ +
        static_cast<Shared>(
            (((row_group() * kColumnWarps + column_warp()) * kRowTiles * tiling_.warp_units * 2) * 32 + lane_) * 16);
    for (int other = 1; other < teams; ++other) {
      if (team() == other) give_out(mine);
      sync_block();
      if (team() == 0) add_out(mine);
      sync_block();
    }
  }
  CINCH_DEVICE void give_out(Shared at) const {
    CINCH_UNROLL
    for (int u = 0; u < kUnits; ++u) {
      if (u >= tiling_.warp_units) break;
      CINCH_UNROLL
      for (int m = 0; m < kRowTiles; ++m) {
        CINCH_UNROLL
        for (int n = 0; n < 2; ++n) {
          const float(&v)[4] = out_[m][u][n];
          shared_store(at + static_cast<Shared>(((u * kRowTiles + m) * 2 + n) * 512),
                       Words4{float_bits(v[0]), float_bits(v[1]), float_bits(v[2]), float_bits(v[3])});
        }
      }
    }
  }
  CINCH_DEVICE void add_out(Shared at) {
    CINCH_UNROLL
    for (int u = 0; u < kUnits; ++u) {
      if (u >= tiling_.warp_units) break;
      CINCH_UNROLL
      for (int m = 0; m < kRowTiles; ++m) {
        CINCH_UNROLL
        for (int n = 0; n < 2; ++n) {
          const Words4 v = shared_words4(at + static_cast<Shared>(((u * kRowTiles + m) * 2 + n) * 512));
          out_[m][u][n][0] += float_of_bits(v.x);
          out_[m][u][n][1] += float_of_bits(v.y);
          out_[m][u][n][2] += float_of_bits(v.z);
          out_[m][u][n][3] += float_of_bits(v.w);
        }
      }
    }
  }

  CINCH_DEVICE void write(int sequence, PlanShare share, const float (&lse)[kRowTiles][2]) const {
    const bool whole = share.count == 1;
    const int place = whole ? 0 : partial_place(share, part_ - share.first);
    const int column = first_unit_ * kUnit + 2 * (lane_ % 4);
    const int own = units_ * kUnit, left = tiling_.value_columns - column, columns = own < left ? own : left;
    CINCH_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      CINCH_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int head = head_of(row_of(m, half));
        if (head < 0) continue;
        const int64_t partial = static_cast<int64_t>(place) * step_.n_heads + head;
        if (column_block() == 0 && column_warp() == 0 && lane_ % 4 == 0) {
          if (!whole) {
            partial_lse(job_)[partial] = lse[m][half];
          } else if (step_.lse != nullptr) {
            step_.lse[static_cast<int64_t>(sequence) * step_.n_heads + head] = lse[m][half] * kLn2;
          }
        }
        if (whole) {
          write_row<T>(whole_out(job_, sequence, head) + column, out_[m], half, columns);
        } else {
          write_row<T>(partial_out(job_) + partial * tiling_.value_columns + column, out_[m], half, columns);
        }
      }
    }
  }

  const DecodeJob& job_;
  const CinchDecodeStep& step_;
  const Tiling& tiling_;
  int part_, head_block_, thread_, lane_;
  Shared shared_;
  int first_unit_, units_;              // of the values, of this warp
  int slot_ = 0;                        // of the ring, where this step's first slab is
  float out_[kRowTiles][kUnits][2][4];  // sums of values: (tile, unit, half of the unit), d fragments
  float maximum_[kRowTiles][2];         // of the team's scores, base 2
  float sum_[kRowTiles][2];             // of this thread's weights
};

}  // namespace cinch::decode
