// One thread block of absorbed latent (MLA) decode on sm_90: TMA brings tiles of the cache into a ring in shared
// memory, wgmma multiplies from there. `Machine` is the GPU (sm90_machine.h) or the emulator of the tests, so that the
// CPU tests run the very code that the GPU runs.
//
// 384 threads: two consumer warpgroups and one of which a single warp works, the producer; it gives its registers to
// them. A tile is kTokens rows of the cache, [latent | rotary
// key], and serves both products: K-major for scores = q k^T, MN-major for scores * latent. The 64 rows of wgmma are
// heads; fewer heads leave rows unused, which costs no memory traffic.
//   - kSplitColumns = false (R <= 256): the warpgroups take alternate tiles, each with all R columns and its own
//     softmax state; the two are merged when the item ends.
//   - kSplitColumns = true (R <= 512): 64 x R fp32 accumulators do not fit one warpgroup. Warpgroup 0 computes scores
//     and probabilities and hands these over as a register image; each warpgroup accumulates half of the columns.
// Width R + Dr and rank R are padded to whole 64-column blocks in shared memory only: TMA fills with zeros what lies
// outside of a row, and output columns from R on are not stored.
#pragma once

#include <cstdint>

#include "attention/kernels/cuda/latent_sm90_items.h"
#include "attention/kernels/cuda/latent_sm90_shape.h"
#include "attention/kernels/decode/results.h"

namespace cinch::sm90 {

/// T: warp::Bf16 or warp::Fp16.
template <class Machine, class T, int kColumns, bool kSplitColumns, int kTokens>
class LatentDecodeBlock {
 public:
  using TensorMap = typename Machine::TensorMap;

  /// cache, queries: maps of boxes of 64 columns by kTokens and 64 rows (latent_sm90.cu).
  CINCH_DEVICE LatentDecodeBlock(Machine& machine, const decode::DecodeJob& job, const TensorMap* cache,
                                 const TensorMap* queries)
      : m_(machine),
        job_(job),
        step_(job.step),
        cache_(cache),
        queries_(queries),
        width_(step_.kv_lora_rank + step_.qk_rope_head_dim),
        layout_(shared_layout(width_, kColumns, kSplitColumns, kTokens)),
        base_(machine.shared_base()),
        thread_(machine.thread() % kWarpgroup),
        group_(machine.warpgroup()),
        first_head_(machine.block_y() * kOperandRows) {}

  CINCH_DEVICE void run() {
    m_.launch_dependents();  // the merge, which waits for the end of this kernel
    initialise_barriers();
    if (group_ == 2) {
      m_.template give_registers<kProducerRegisters>();
      if (thread_ / 32 == 0) load_tiles();
      if (thread_ / 32 == 1) load_queries();
    } else {
      m_.template take_registers<kConsumerRegisters>();
      if constexpr (kSplitColumns) {
        // A path of its own for each group: wgmma's registers must not depend on a branch.
        if (group_ == 0) {
          compute_columns<0>();
        } else {
          compute_columns<1>();
        }
      } else {
        compute_tiles();
      }
    }
  }

 private:
  static constexpr int kAccumulators = kColumns / 2;
  static constexpr int kScores = kTokens / 2;
  static constexpr int kProbabilities = kTokens / 4;
  static constexpr int kTilesPerPage = CINCH_DECODE_PAGE / kTokens;
  static constexpr int kTileReaders = kSplitColumns ? 8 : 4;   // warps that read a tile
  static constexpr int kQueryReaders = kSplitColumns ? 4 : 8;  // warps that read queries
  static constexpr int kBothGroups = 1, kOwnGroup = 2;         // named barriers; kOwnGroup + group

  /// A place in the ring; `parity` of the barrier's phase that fills it.
  struct Place {
    int stage = 0;
    uint32_t parity = 0;
  };

  CINCH_DEVICE Place after(Place place, int steps) const {
    place.stage += steps;
    while (place.stage >= layout_.stages) {
      place.stage -= layout_.stages;
      place.parity ^= 1;
    }
    return place;
  }

  CINCH_DEVICE uint32_t full(int stage) const { return base_ + layout_.barriers + static_cast<uint32_t>(stage) * 8; }
  CINCH_DEVICE uint32_t empty(int stage) const { return full(kMostStages + stage); }
  CINCH_DEVICE uint32_t queries_full() const { return full(2 * kMostStages); }
  CINCH_DEVICE uint32_t queries_empty() const { return full(2 * kMostStages + 1); }
  CINCH_DEVICE uint32_t handed_over() const { return full(2 * kMostStages + 2); }
  CINCH_DEVICE uint32_t taken() const { return full(2 * kMostStages + 3); }
  CINCH_DEVICE uint32_t tile(int stage) const { return base_ + static_cast<uint32_t>(stage) * layout_.stage; }
  CINCH_DEVICE uint32_t q() const { return base_ + layout_.q; }
  CINCH_DEVICE bool leads_warp() const { return thread_ % 32 == 0; }

  CINCH_DEVICE void initialise_barriers() {
    if (m_.thread() == 0) {
      for (int i = 0; i < layout_.stages; ++i) {
        m_.barrier_init(full(i), 1);
        m_.barrier_init(empty(i), kTileReaders);
      }
      m_.barrier_init(queries_full(), 1);
      m_.barrier_init(queries_empty(), kQueryReaders);
      m_.barrier_init(handed_over(), 4);
      m_.barrier_init(taken(), 4);
      m_.fence_barrier_init();
    }
    m_.sync_block();
  }

  CINCH_DEVICE WorkItems items() const { return WorkItems(job_, m_.block_x(), kTokens); }

  // ---- producer warps

  CINCH_DEVICE void load_tiles() {
    WorkItems work = items();
    for (WorkItem item; work.next(item);) load_tiles(item);
  }

  CINCH_DEVICE void load_tiles(const WorkItem& item) {
    const uint32_t bytes = static_cast<uint32_t>(layout_.loaded) * layout_.block;
    const int32_t* table =
        step_.block_table == nullptr ? nullptr : step_.block_table + item.sequence * step_.block_table_stride;
    const int end_page = divided_up(item.end_tile, kTilesPerPage);
    int pages = 0, first_page = -32;  // each lane knows one of 32 pages, read ahead
    for (int t = item.first_tile; t < item.end_tile; ++t, place_ = after(place_, 1)) {
      int block = item.sequence, row = t * kTokens;
      if (table != nullptr) {
        const int page = t / kTilesPerPage;
        if (page >= first_page + 32) {
          first_page = page;
          pages = page + thread_ < end_page ? table[page + thread_] : 0;
        }
        block = m_.from_lane(pages, page - first_page);
        row = t % kTilesPerPage * kTokens;
      }
      if (leads_warp()) {
        m_.barrier_wait(empty(place_.stage), place_.parity ^ 1);
        m_.barrier_expect(full(place_.stage), bytes);
        for (int b = 0; b < layout_.loaded; ++b) {
          m_.load_box(tile(place_.stage) + static_cast<uint32_t>(b) * layout_.block, cache_, full(place_.stage),
                      b * kBlockColumns, row, block);
        }
      }
      m_.sync_warp();
    }
  }

  /// A warp of its own: the next sequence's queries wait for the last one's scores, its tiles do not.
  CINCH_DEVICE void load_queries() {
    constexpr uint32_t kBlock = kOperandRows * kRowBytes;
    WorkItems work = items();
    for (WorkItem item; work.next(item); queries_parity_ ^= 1) {
      if (leads_warp()) {
        m_.barrier_wait(queries_empty(), queries_parity_ ^ 1);
        m_.barrier_expect(queries_full(), static_cast<uint32_t>(layout_.loaded) * kBlock);
        for (int b = 0; b < layout_.loaded; ++b) {
          m_.load_box(q() + static_cast<uint32_t>(b) * kBlock, queries_, queries_full(), b * kBlockColumns, first_head_,
                      item.sequence);
        }
      }
      m_.sync_warp();
    }
  }

  // ---- consumer warpgroups

  CINCH_DEVICE void begin() {
    CINCH_UNROLL
    for (int i = 0; i < kAccumulators; ++i) o_[i] = 0;
    CINCH_UNROLL
    for (int r = 0; r < 2; ++r) {
      max_[r] = warp::minus_infinity();
      sum_[r] = 0;
    }
  }

  CINCH_DEVICE void await_queries() {
    m_.barrier_wait(queries_full(), queries_parity_);
    queries_parity_ ^= 1;
  }
  CINCH_DEVICE void release_queries() {
    m_.sync_warp();
    if (leads_warp()) m_.barrier_arrive(queries_empty());
  }

  /// kSplitColumns: every tile, columns from kGroup * kColumns on.
  template <int kGroup>
  CINCH_DEVICE void compute_columns() {
    WorkItems work = items();
    for (WorkItem item; work.next(item);) {
      begin();
      if constexpr (kGroup == 0) await_queries();
      for (int t = item.first_tile; t < item.end_tile; ++t, place_ = after(place_, 1)) {
        m_.barrier_wait(full(place_.stage), place_.parity);
        if constexpr (kGroup == 0) {
          score_tile(item, t);
          hand_over();
        } else {
          take_over();
        }
        accumulate(kGroup * kColumns);
      }
      if constexpr (kGroup == 0) release_queries();
      share_state<kGroup>();
      store(item, 0, kAccumulators, kGroup * kColumns);
    }
  }

  /// Not kSplitColumns: every other tile.
  CINCH_DEVICE void compute_tiles() {
    WorkItems work = items();
    for (WorkItem item; work.next(item);) {
      begin();
      await_queries();
      place_ = after(place_, group_);
      int t = item.first_tile + group_;
      for (; t < item.end_tile; t += 2, place_ = after(place_, 2)) {
        m_.barrier_wait(full(place_.stage), place_.parity);
        score_tile(item, t);
        accumulate(0);
      }
      place_ = before(place_, t - item.end_tile);  // t is end_tile or end_tile + 1; the next item starts at one place
      merge();
      release_queries();
      store(item, group_ * kAccumulators / 2, kAccumulators / 2, 0);
    }
  }

  CINCH_DEVICE Place before(Place place, int steps) const {
    if (steps > place.stage) {
      place.stage += layout_.stages;
      place.parity ^= 1;
    }
    place.stage -= steps;
    return place;
  }

  /// Scores of the tile at place_, then probabilities_ of it relative to the new maximum, and rescale_.
  CINCH_DEVICE void score_tile(const WorkItem& item, int t) {
    const int first = item.first_token - t * kTokens, end = item.end_token - t * kTokens;  // visible rows
    if (first > 0 || end < kTokens) clear_rows(first, end);
    float scores[kScores];
    const int steps = divided_up(width_, kStep);
    m_.wgmma_fence(scores);
    CINCH_UNROLL_BY_4
    for (int k = 0; k < steps; ++k) {
      m_.template multiply_shared<T>(scores, row_operand(q(), kOperandRows, k),
                                     row_operand(tile(place_.stage), kTokens, k), k > 0);
    }
    m_.wgmma_commit();
    m_.wgmma_wait(scores);
    softmax(scores, first, end);
  }

  /// Rows that are not visible may hold anything; a probability of 0 would not silence a NaN.
  CINCH_DEVICE void clear_rows(int first, int end) {
    const int chunks = kTokens * 8;  // of 16 bytes, per block; whole rows, so the swizzle does not matter
    for (int i = thread_; i < layout_.loaded * chunks; i += kWarpgroup) {
      const int row = i % chunks / 8;
      if (row >= first && row < end) continue;
      m_.store_shared(tile(place_.stage) + static_cast<uint32_t>(i * 16), typename Machine::Chunk{});
    }
    m_.fence_async_proxy();
    m_.sync_group(kOwnGroup + group_, kWarpgroup);
  }

  CINCH_DEVICE void softmax(float (&scores)[kScores], int first, int end) {
    if (step_.softcap > 0) {
      CINCH_UNROLL
      for (int i = 0; i < kScores; ++i) scores[i] = m_.tanh(scores[i] * (step_.scale / step_.softcap));
    }
    const float scale = log2_scale();
    if (first > 0 || end < kTokens) {
      CINCH_UNROLL
      for (int i = 0; i < kScores; ++i) {
        const int row = fragment_column(thread_, i);
        if (row < first || row >= end) scores[i] = warp::minus_infinity();
      }
    }
    float offset[2];
    CINCH_UNROLL
    for (int r = 0; r < 2; ++r) {
      float highest = max_[r];
      CINCH_UNROLL
      for (int i = 0; i < kScores; ++i) {
        if ((i >> 1 & 1) == r) highest = m_.max(highest, scores[i]);
      }
      highest = m_.max(highest, m_.from_lane_xor(highest, 1));
      highest = m_.max(highest, m_.from_lane_xor(highest, 2));
      offset[r] = highest * scale;  // finite: a token of the tile is visible
      rescale_[r] = m_.exp2(max_[r] * scale - offset[r]);
      max_[r] = highest;
      sum_[r] *= rescale_[r];
    }
    CINCH_UNROLL
    for (int i = 0; i < kScores; ++i) {
      scores[i] = m_.exp2(scores[i] * scale - offset[i >> 1 & 1]);
      sum_[i >> 1 & 1] += scores[i];
    }
    // Accumulator registers 8k..8k+7 are the four registers of A in step k, as they stand.
    CINCH_UNROLL
    for (int i = 0; i < kProbabilities; ++i) probabilities_[i] = m_.template pack<T>(scores[2 * i], scores[2 * i + 1]);
  }

  /// o = o * rescale + probabilities * latent, then the tile is free.
  CINCH_DEVICE void accumulate(int first_column) {
    CINCH_UNROLL
    for (int i = 0; i < kAccumulators; ++i) o_[i] *= rescale_[i >> 1 & 1];
    m_.hold(probabilities_);
    m_.wgmma_fence(o_);
    CINCH_UNROLL
    for (int k = 0; k < kTokens / kStep; ++k) {
      m_.template multiply_registers<T>(o_, &probabilities_[4 * k],
                                        column_operand(tile(place_.stage), kTokens, first_column, k));
    }
    m_.wgmma_commit();
    m_.wgmma_wait(o_);
    m_.sync_warp();
    if (leads_warp()) m_.barrier_arrive(empty(place_.stage));
  }

  // ---- between the warpgroups

  /// Registers of both groups' thread t hold the same matrix elements, so what one writes at its own place the other
  /// reads at the same place. Chunk i of thread t.
  CINCH_DEVICE uint32_t image(uint32_t area, int i) const {
    return area + static_cast<uint32_t>((i * kWarpgroup + thread_) * 16);
  }
  CINCH_DEVICE uint32_t state(int group, int r) const {
    return base_ + layout_.state + static_cast<uint32_t>((group * kOperandRows + fragment_row(thread_, 2 * r)) * 8);
  }

  CINCH_DEVICE void hand_over() {
    m_.barrier_wait(taken(), exchanged_ ^ 1);
    CINCH_UNROLL
    for (int i = 0; i < kProbabilities / 4; ++i) {
      m_.store_shared(image(base_ + layout_.exchange, i), m_.chunk_of(&probabilities_[4 * i]));
    }
    if (thread_ % 4 == 0) {
      CINCH_UNROLL
      for (int r = 0; r < 2; ++r) m_.store_shared(state(0, r), rescale_[r], 0.0f);
    }
    m_.sync_warp();
    if (leads_warp()) m_.barrier_arrive(handed_over());
    exchanged_ ^= 1;
  }

  CINCH_DEVICE void take_over() {
    m_.barrier_wait(handed_over(), exchanged_);
    CINCH_UNROLL
    for (int i = 0; i < kProbabilities / 4; ++i) {
      m_.take_chunk(m_.load_shared(image(base_ + layout_.exchange, i)), &probabilities_[4 * i]);
    }
    float unused;
    CINCH_UNROLL
    for (int r = 0; r < 2; ++r) m_.load_shared(state(0, r), rescale_[r], unused);
    m_.sync_warp();
    if (leads_warp()) m_.barrier_arrive(taken());
    exchanged_ ^= 1;
  }

  CINCH_DEVICE void reduce_sums() {
    CINCH_UNROLL
    for (int r = 0; r < 2; ++r) {
      sum_[r] += m_.from_lane_xor(sum_[r], 1);
      sum_[r] += m_.from_lane_xor(sum_[r], 2);
    }
  }

  /// Group 1 learns maximum and sum.
  template <int kGroup>
  CINCH_DEVICE void share_state() {
    if constexpr (kGroup == 0) {
      reduce_sums();
      CINCH_UNROLL
      for (int r = 0; r < 2; ++r) {
        if (thread_ % 4 == 0) m_.store_shared(state(1, r), max_[r], sum_[r]);
      }
    }
    m_.sync_group(kBothGroups, kConsumers);
    if constexpr (kGroup == 1) {
      CINCH_UNROLL
      for (int r = 0; r < 2; ++r) m_.load_shared(state(1, r), max_[r], sum_[r]);
    }
  }

  /// Both groups' results become one; group g holds it in half g of its accumulators. Goes through q's place.
  CINCH_DEVICE void merge() {
    reduce_sums();
    CINCH_UNROLL
    for (int r = 0; r < 2; ++r) {
      if (thread_ % 4 == 0) m_.store_shared(state(group_, r), max_[r], sum_[r]);
    }
    m_.sync_group(kBothGroups, kConsumers);
    const float scale = log2_scale();
    float factor[2];
    CINCH_UNROLL
    for (int r = 0; r < 2; ++r) {
      float other_max, other_sum;
      m_.load_shared(state(group_ ^ 1, r), other_max, other_sum);
      const float highest = m_.max(max_[r], other_max);
      const float offset = highest == warp::minus_infinity() ? 0.0f : highest * scale;
      factor[r] = m_.exp2(max_[r] * scale - offset);
      sum_[r] = sum_[r] * factor[r] + other_sum * m_.exp2(other_max * scale - offset);
      max_[r] = highest;
    }
    CINCH_UNROLL
    for (int i = 0; i < kAccumulators; ++i) o_[i] *= factor[i >> 1 & 1];
    constexpr int kHalf = kAccumulators / 2;
    CINCH_UNROLL
    for (int half = 0; half < 2; ++half) {
      float* own = o_ + half * kHalf;
      if (group_ != half) {
        CINCH_UNROLL
        for (int i = 0; i < kHalf / 4; ++i) m_.store_shared(image(q(), i), m_.chunk_of(own + 4 * i));
      }
      m_.sync_group(kBothGroups, kConsumers);
      if (group_ == half) {
        CINCH_UNROLL
        for (int i = 0; i < kHalf / 4; ++i) {
          float other[4];
          m_.take_chunk(m_.load_shared(image(q(), i)), other);
          CINCH_UNROLL
          for (int j = 0; j < 4; ++j) own[4 * i + j] += other[j];
        }
      }
      // The area is free again: who writes there next has read it, at the same places.
    }
    m_.fence_async_proxy();  // TMA writes the next queries there
  }

  /// Accumulators [first, first + count), whose column 0 is output column `column_0`.
  CINCH_DEVICE void store(const WorkItem& item, int first, int count, int column_0) {
    const int rank = step_.kv_lora_rank;
    CINCH_UNROLL
    for (int r = 0; r < 2; ++r) {
      const int head = first_head_ + fragment_row(thread_, 2 * r);
      if (head >= step_.n_heads) continue;
      const float inverse = sum_[r] > 0 ? 1.0f / sum_[r] : 0.0f;
      uint16_t* const out = decode::whole_out(job_, item.sequence, head);
      const int64_t place = static_cast<int64_t>(item.place) * step_.n_heads + head;
      float* const partial = decode::partial_out(job_) + place * rank;
      CINCH_UNROLL
      for (int i = 2 * r; i < kAccumulators; i += 4) {
        const int column = column_0 + fragment_column(thread_, i);
        if (i < first || i >= first + count || column >= rank) continue;
        if (item.place < 0) {
          m_.template store_pair<T>(out + column, o_[i] * inverse, o_[i + 1] * inverse);
        } else {
          m_.store_pair(partial + column, o_[i] * inverse, o_[i + 1] * inverse);
        }
      }
      if (thread_ % 4 != 0 || group_ != 0) continue;
      const float lse = max_[r] * log2_scale() + m_.log2(sum_[r]);
      if (item.place >= 0) {
        decode::partial_lse(job_)[place] = lse;
      } else if (step_.lse != nullptr) {
        step_.lse[static_cast<int64_t>(item.sequence) * step_.n_heads + head] = lse * warp::kLn2;
      }
    }
  }

  /// From what softmax has in max_ to base-2 logarithms.
  CINCH_DEVICE float log2_scale() const { return (step_.softcap > 0 ? step_.softcap : step_.scale) * warp::kLog2e; }

  Machine& m_;
  const decode::DecodeJob& job_;
  const CinchDecodeStep& step_;
  const TensorMap* cache_;
  const TensorMap* queries_;
  const int width_;
  const SharedLayout layout_;
  const uint32_t base_;
  const int thread_, group_;  // group 2 is the producers
  const int first_head_;
  Place place_;
  uint32_t queries_parity_ = 0;
  uint32_t exchanged_ = 0;  // parity of the next hand-over
  float o_[kAccumulators];
  float max_[2], sum_[2], rescale_[2];  // of rows fragment_row(thread, 0) and 8 below
  uint32_t probabilities_[kProbabilities];
};

}  // namespace cinch::sm90
