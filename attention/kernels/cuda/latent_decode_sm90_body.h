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

#include "attention/kernels/cuda/sm90_layout.h"

namespace cinch::sm90 {

/// Tiles [first_tile, end_tile) of a request. slot < 0: the result goes to `out`, else to that slot of the partial
/// results.
struct WorkItem {
  int32_t request, first_tile, end_tile, slot;
};

struct LatentDecodeParameters {
  const void* q_latent;  // (B, H, R), scaled by nothing
  const void* q_rope;    // (B, H, Dr)
  void* out;             // (B, H, R) in q's type
  float* lse;            // (B, H), natural logarithm, of scaled scores; may be null
  float* partial_out;    // (slots, H, R), normalised
  float* partial_lse;    // (slots, H)
  const int32_t* block_table;  // (B, pages); null: the cache is dense, (B, S, R + Dr)
  const int32_t* lengths;      // (B), tokens
  const WorkItem* items;
  const int32_t* first_item;  // (parts + 1)
  int64_t q_latent_batch_stride, q_latent_head_stride, q_rope_batch_stride, q_rope_head_stride;  // elements
  int64_t out_batch_stride, out_head_stride, block_table_stride;
  int32_t heads, rank, rope;
  float scale, softcap;  // softcap 0: none
};

constexpr int kConsumers = 2 * kWarpgroup;
constexpr int kThreads = kConsumers + kWarpgroup;
constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;
constexpr int kPageTokens = 64;
constexpr int kMostStages = 12;
constexpr int kSharedLimit = 232448;  // bytes per block on sm_90

CINCH_HOST_DEVICE constexpr int divided_up(int a, int b) { return (a + b - 1) / b; }

/// Byte offsets in shared memory.
struct SharedLayout {
  int loaded;  // 64-column blocks that TMA brings per tile
  uint32_t block, stage, q, exchange, state, barriers, total;
  int stages;
};

/// columns: accumulated by one warpgroup. stages < 2 in the result: the shape does not fit.
CINCH_HOST_DEVICE constexpr SharedLayout shared_layout(int width, int columns, bool split_columns, int tokens) {
  SharedLayout layout{};
  layout.loaded = divided_up(width, kBlockColumns);
  const int value_blocks = columns / kBlockColumns * (split_columns ? 2 : 1);
  layout.block = static_cast<uint32_t>(tokens * kRowBytes);
  layout.stage = static_cast<uint32_t>(layout.loaded > value_blocks ? layout.loaded : value_blocks) * layout.block;
  const uint32_t q = static_cast<uint32_t>(layout.loaded) * kOperandRows * kRowBytes;
  const uint32_t exchange = split_columns ? static_cast<uint32_t>(tokens * kWarpgroup) : 0;
  const uint32_t state = 4 * kOperandRows * sizeof(float);
  const uint32_t barriers = (2 * kMostStages + 2) * 8;
  const uint32_t ring = kSharedLimit - q - exchange - state - barriers;
  layout.stages = q + exchange + state + barriers > kSharedLimit ? 0 : static_cast<int>(ring / layout.stage);
  if (layout.stages > kMostStages) layout.stages = kMostStages;
  layout.q = static_cast<uint32_t>(layout.stages) * layout.stage;
  layout.exchange = layout.q + q;
  layout.state = layout.exchange + exchange;
  layout.barriers = layout.state + state;
  layout.total = layout.barriers + barriers;
  return layout;
}

template <class Machine, class T, int kColumns, bool kSplitColumns, int kTokens>
class LatentDecodeBlock {
 public:
  using TensorMap = typename Machine::TensorMap;

  CINCH_HOST_DEVICE LatentDecodeBlock(Machine& machine, const LatentDecodeParameters& parameters, const TensorMap* cache)
      : m_(machine),
        p_(parameters),
        cache_(cache),
        layout_(shared_layout(parameters.rank + parameters.rope, kColumns, kSplitColumns, kTokens)),
        base_(machine.shared_base()),
        thread_(machine.thread() % kWarpgroup),
        group_(machine.warpgroup()),
        first_head_(machine.block_y() * kOperandRows),
        rows_(parameters.heads - first_head_ < kOperandRows ? parameters.heads - first_head_ : kOperandRows) {}

  CINCH_HOST_DEVICE void run() {
    initialise_barriers();
    const int first = p_.first_item[m_.block_x()], end = p_.first_item[m_.block_x() + 1];
    if (group_ == 2) {
      m_.template give_registers<kProducerRegisters>();
      if (thread_ >= 32) return;
      for (int i = first; i < end; ++i) load_tiles(p_.items[i]);
    } else {
      m_.template take_registers<kConsumerRegisters>();
      if constexpr (kSplitColumns) {
        // A path of its own for each group: wgmma's registers must not depend on a branch.
        if (group_ == 0) {
          for (int i = first; i < end; ++i) compute_columns<0>(p_.items[i]);
        } else {
          for (int i = first; i < end; ++i) compute_columns<1>(p_.items[i]);
        }
      } else {
        for (int i = first; i < end; ++i) compute_tiles(p_.items[i]);
      }
    }
  }

 private:
  static constexpr int kAccumulators = kColumns / 2;
  static constexpr int kScores = kTokens / 2;
  static constexpr int kProbabilities = kTokens / 4;
  static constexpr int kTilesPerPage = kPageTokens / kTokens;
  static constexpr int kReaders = kSplitColumns ? 8 : 4;  // warps that read a tile
  static constexpr int kBothGroups = 1, kOwnGroup = 2;    // named barriers; kOwnGroup + group

  /// A place in the ring; `parity` of the barrier's phase that fills it.
  struct Place {
    int stage = 0;
    uint32_t parity = 0;
  };

  CINCH_HOST_DEVICE Place after(Place place, int steps) const {
    place.stage += steps;
    while (place.stage >= layout_.stages) {
      place.stage -= layout_.stages;
      place.parity ^= 1;
    }
    return place;
  }

  CINCH_HOST_DEVICE uint32_t full(int stage) const { return base_ + layout_.barriers + static_cast<uint32_t>(stage) * 8; }
  CINCH_HOST_DEVICE uint32_t empty(int stage) const { return full(kMostStages + stage); }
  CINCH_HOST_DEVICE uint32_t handed_over() const { return full(2 * kMostStages); }
  CINCH_HOST_DEVICE uint32_t taken() const { return full(2 * kMostStages + 1); }
  CINCH_HOST_DEVICE uint32_t tile(int stage) const { return base_ + static_cast<uint32_t>(stage) * layout_.stage; }
  CINCH_HOST_DEVICE uint32_t q() const { return base_ + layout_.q; }
  CINCH_HOST_DEVICE bool leads_warp() const { return thread_ % 32 == 0; }

  CINCH_HOST_DEVICE void initialise_barriers() {
    if (m_.thread() == 0) {
      for (int i = 0; i < layout_.stages; ++i) {
        m_.barrier_init(full(i), 1);
        m_.barrier_init(empty(i), kReaders);
      }
      m_.barrier_init(handed_over(), 4);
      m_.barrier_init(taken(), 4);
      m_.fence_barrier_init();
    }
    m_.sync_block();
  }

  // ---- producer warp

  CINCH_HOST_DEVICE void load_tiles(const WorkItem& item) {
    const uint32_t bytes = static_cast<uint32_t>(layout_.loaded) * layout_.block;
    const int32_t* table = p_.block_table == nullptr ? nullptr : p_.block_table + item.request * p_.block_table_stride;
    const int last_page = (item.end_tile - 1) / kTilesPerPage;
    int pages = 0, first_page = -32;  // each lane knows one of 32 pages, read ahead
    for (int t = item.first_tile; t < item.end_tile; ++t) {
      int block = item.request, row = t * kTokens;
      if (table != nullptr) {
        const int page = t / kTilesPerPage;
        if (page >= first_page + 32) {
          first_page = page;
          pages = page + thread_ <= last_page ? table[page + thread_] : 0;
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
      place_ = after(place_, 1);
    }
  }

  // ---- consumer warpgroups

  CINCH_HOST_DEVICE void begin(int request) {
#pragma unroll
    for (int i = 0; i < kAccumulators; ++i) o_[i] = 0;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      max_[r] = -m_.infinity();
      sum_[r] = 0;
    }
    load_queries(request);
  }

  /// kSplitColumns: every tile, columns from kGroup * kColumns on.
  template <int kGroup>
  CINCH_HOST_DEVICE void compute_columns(const WorkItem& item) {
    begin(item.request);
    const int length = p_.lengths[item.request];
    for (int t = item.first_tile; t < item.end_tile; ++t, place_ = after(place_, 1)) {
      m_.barrier_wait(full(place_.stage), place_.parity);
      if constexpr (kGroup == 0) {
        score_tile(length - t * kTokens);
        hand_over();
      } else {
        take_over();
      }
      accumulate(kGroup * kColumns);
    }
    share_state<kGroup>();
    store(item, 0, kAccumulators, kGroup * kColumns);
  }

  /// Not kSplitColumns: every other tile.
  CINCH_HOST_DEVICE void compute_tiles(const WorkItem& item) {
    begin(item.request);
    const int length = p_.lengths[item.request];
    place_ = after(place_, group_);
    int t = item.first_tile + group_;
    for (; t < item.end_tile; t += 2, place_ = after(place_, 2)) {
      m_.barrier_wait(full(place_.stage), place_.parity);
      score_tile(length - t * kTokens);
      accumulate(0);
    }
    place_ = before(place_, t - item.end_tile);  // t is end_tile or end_tile + 1; the next item starts at one place
    merge();
    store(item, group_ * kAccumulators / 2, kAccumulators / 2, 0);
  }

  CINCH_HOST_DEVICE Place before(Place place, int steps) const {
    if (steps > place.stage) {
      place.stage += layout_.stages;
      place.parity ^= 1;
    }
    place.stage -= steps;
    return place;
  }

  /// Rows are heads, columns [latent | rotary | zeros up to a whole block]. Rows without a head are left as they are:
  /// rows never mix.
  CINCH_HOST_DEVICE void load_queries(int request) {
    m_.sync_group(kBothGroups, kConsumers);  // both groups are done with the last item
    const T* latent = static_cast<const T*>(p_.q_latent) + request * p_.q_latent_batch_stride +
                      first_head_ * p_.q_latent_head_stride;
    const T* rotary =
        static_cast<const T*>(p_.q_rope) + request * p_.q_rope_batch_stride + first_head_ * p_.q_rope_head_stride;
    const int chunks = layout_.loaded * 8;  // of 8 columns, per row
    for (int i = m_.thread(); i < rows_ * chunks; i += kConsumers) {
      const int row = i / chunks, column = i % chunks * 8;
      typename Machine::Chunk chunk{};
      if (column < p_.rank) {
        chunk = m_.load_chunk(latent + row * p_.q_latent_head_stride + column);
      } else if (column < p_.rank + p_.rope) {
        chunk = m_.load_chunk(rotary + row * p_.q_rope_head_stride + column - p_.rank);
      }
      m_.store_shared(q() + tile_offset(kOperandRows, row, column), chunk);
    }
    m_.fence_async_proxy();
    m_.sync_group(kBothGroups, kConsumers);
  }

  /// Scores of the tile at place_, then probabilities_ of it relative to the new maximum, and rescale_.
  /// valid: rows of the tile that are tokens of the request.
  CINCH_HOST_DEVICE void score_tile(int valid) {
    if (valid < kTokens) clear_rows(valid);
    float scores[kScores];
    const int steps = divided_up(p_.rank + p_.rope, kStep);
    m_.wgmma_fence(scores);
#pragma unroll 4
    for (int k = 0; k < steps; ++k) {
      m_.template multiply_shared<T>(scores, row_operand(q(), kOperandRows, k),
                                     row_operand(tile(place_.stage), kTokens, k), k > 0);
    }
    m_.wgmma_commit();
    m_.wgmma_wait(scores);
    softmax(scores, valid);
  }

  /// Rows of the cache from `valid` on belong to no token and may hold anything; a probability of 0 would not silence a
  /// NaN.
  CINCH_HOST_DEVICE void clear_rows(int valid) {
    const int chunks = (kTokens - valid) * 8;  // of 16 bytes, per block; a whole row, so the swizzle does not matter
    for (int i = thread_; i < layout_.loaded * chunks; i += kWarpgroup) {
      const uint32_t offset = static_cast<uint32_t>(i / chunks) * layout_.block +
                              static_cast<uint32_t>(valid * kRowBytes + i % chunks * 16);
      m_.store_shared(tile(place_.stage) + offset, typename Machine::Chunk{});
    }
    m_.fence_async_proxy();
    m_.sync_group(kOwnGroup + group_, kWarpgroup);
  }

  CINCH_HOST_DEVICE void softmax(float (&scores)[kScores], int valid) {
    float log2_scale = p_.scale * kLog2E;
    if (p_.softcap > 0) {
#pragma unroll
      for (int i = 0; i < kScores; ++i) scores[i] = m_.tanh(scores[i] * (p_.scale / p_.softcap));
      log2_scale = p_.softcap * kLog2E;
    }
    if (valid < kTokens) {
#pragma unroll
      for (int i = 0; i < kScores; ++i) {
        if (fragment_column(thread_, i) >= valid) scores[i] = -m_.infinity();
      }
    }
    float offset[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float highest = max_[r];
#pragma unroll
      for (int i = 0; i < kScores; ++i) {
        if ((i >> 1 & 1) == r) highest = m_.max(highest, scores[i]);
      }
      highest = m_.max(highest, m_.from_lane_xor(highest, 1));
      highest = m_.max(highest, m_.from_lane_xor(highest, 2));
      offset[r] = highest * log2_scale;  // finite: the tile has a token
      rescale_[r] = m_.exp2(max_[r] * log2_scale - offset[r]);
      max_[r] = highest;
      sum_[r] *= rescale_[r];
    }
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      scores[i] = m_.exp2(scores[i] * log2_scale - offset[i >> 1 & 1]);
      sum_[i >> 1 & 1] += scores[i];
    }
    // Accumulator registers 8k..8k+7 are the four registers of A in step k, as they stand.
#pragma unroll
    for (int i = 0; i < kProbabilities; ++i) probabilities_[i] = m_.template pack<T>(scores[2 * i], scores[2 * i + 1]);
  }

  /// o = o * rescale + probabilities * latent, then the tile is free.
  CINCH_HOST_DEVICE void accumulate(int first_column) {
#pragma unroll
    for (int i = 0; i < kAccumulators; ++i) o_[i] *= rescale_[i >> 1 & 1];
    m_.hold(probabilities_);
    m_.wgmma_fence(o_);
#pragma unroll
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
  CINCH_HOST_DEVICE uint32_t image(uint32_t area, int i) const {
    return area + static_cast<uint32_t>((i * kWarpgroup + thread_) * 16);
  }
  CINCH_HOST_DEVICE uint32_t state(int group, int r) const {
    return base_ + layout_.state + static_cast<uint32_t>((group * kOperandRows + fragment_row(thread_, 2 * r)) * 8);
  }

  CINCH_HOST_DEVICE void hand_over() {
    m_.barrier_wait(taken(), exchanged_ ^ 1);
#pragma unroll
    for (int i = 0; i < kProbabilities / 4; ++i) {
      m_.store_shared(image(base_ + layout_.exchange, i), m_.chunk_of(&probabilities_[4 * i]));
    }
    if (thread_ % 4 == 0) {
#pragma unroll
      for (int r = 0; r < 2; ++r) m_.store_shared(state(0, r), rescale_[r], 0.0f);
    }
    m_.sync_warp();
    if (leads_warp()) m_.barrier_arrive(handed_over());
    exchanged_ ^= 1;
  }

  CINCH_HOST_DEVICE void take_over() {
    m_.barrier_wait(handed_over(), exchanged_);
#pragma unroll
    for (int i = 0; i < kProbabilities / 4; ++i) {
      m_.take_chunk(m_.load_shared(image(base_ + layout_.exchange, i)), &probabilities_[4 * i]);
    }
    float unused;
#pragma unroll
    for (int r = 0; r < 2; ++r) m_.load_shared(state(0, r), rescale_[r], unused);
    m_.sync_warp();
    if (leads_warp()) m_.barrier_arrive(taken());
    exchanged_ ^= 1;
  }

  CINCH_HOST_DEVICE void reduce_sums() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum_[r] += m_.from_lane_xor(sum_[r], 1);
      sum_[r] += m_.from_lane_xor(sum_[r], 2);
    }
  }

  /// Group 1 learns maximum and sum.
  template <int kGroup>
  CINCH_HOST_DEVICE void share_state() {
    if constexpr (kGroup == 0) {
      reduce_sums();
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (thread_ % 4 == 0) m_.store_shared(state(1, r), max_[r], sum_[r]);
      }
    }
    m_.sync_group(kBothGroups, kConsumers);
    if constexpr (kGroup == 1) {
#pragma unroll
      for (int r = 0; r < 2; ++r) m_.load_shared(state(1, r), max_[r], sum_[r]);
    }
  }

  /// Both groups' results become one; group g holds it in half g of its accumulators. Goes through q's place.
  CINCH_HOST_DEVICE void merge() {
    reduce_sums();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (thread_ % 4 == 0) m_.store_shared(state(group_, r), max_[r], sum_[r]);
    }
    m_.sync_group(kBothGroups, kConsumers);
    const float log2_scale = (p_.softcap > 0 ? p_.softcap : p_.scale) * kLog2E;
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float other_max, other_sum;
      m_.load_shared(state(group_ ^ 1, r), other_max, other_sum);
      const float highest = m_.max(max_[r], other_max);
      const float offset = highest == -m_.infinity() ? 0.0f : highest * log2_scale;
      factor[r] = m_.exp2(max_[r] * log2_scale - offset);
      sum_[r] = sum_[r] * factor[r] + other_sum * m_.exp2(other_max * log2_scale - offset);
      max_[r] = highest;
    }
#pragma unroll
    for (int i = 0; i < kAccumulators; ++i) o_[i] *= factor[i >> 1 & 1];
    constexpr int kHalf = kAccumulators / 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float* own = o_ + half * kHalf;
      if (group_ != half) {
#pragma unroll
        for (int i = 0; i < kHalf / 4; ++i) m_.store_shared(image(q(), i), m_.chunk_of(own + 4 * i));
      }
      m_.sync_group(kBothGroups, kConsumers);
      if (group_ == half) {
#pragma unroll
        for (int i = 0; i < kHalf / 4; ++i) {
          float other[4];
          m_.take_chunk(m_.load_shared(image(q(), i)), other);
#pragma unroll
          for (int j = 0; j < 4; ++j) own[4 * i + j] += other[j];
        }
      }
      if (half == 0) m_.sync_group(kBothGroups, kConsumers);
    }
  }

  /// Accumulators [first, first + count), whose column 0 is output column `column_0`.
  CINCH_HOST_DEVICE void store(const WorkItem& item, int first, int count, int column_0) {
    const float log2_scale = (p_.softcap > 0 ? p_.softcap : p_.scale) * kLog2E;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = fragment_row(thread_, 2 * r), head = first_head_ + row;
      if (row >= rows_) continue;
      const float inverse = sum_[r] > 0 ? 1.0f / sum_[r] : 0.0f;
      T* out = static_cast<T*>(p_.out) + item.request * p_.out_batch_stride + head * p_.out_head_stride;
      float* partial = p_.partial_out + (static_cast<int64_t>(item.slot) * p_.heads + head) * p_.rank;
#pragma unroll
      for (int i = 2 * r; i < kAccumulators; i += 4) {
        const int column = column_0 + fragment_column(thread_, i);
        if (i < first || i >= first + count || column >= p_.rank) continue;
        if (item.slot < 0) {
          m_.store_pair(out + column, o_[i] * inverse, o_[i + 1] * inverse);
        } else {
          m_.store_pair(partial + column, o_[i] * inverse, o_[i + 1] * inverse);
        }
      }
      if (thread_ % 4 != 0 || group_ != 0) continue;
      const float lse = sum_[r] > 0 ? (max_[r] * log2_scale + m_.log2(sum_[r])) * kLn2 : -m_.infinity();
      if (item.slot >= 0) {
        p_.partial_lse[static_cast<int64_t>(item.slot) * p_.heads + head] = lse;
      } else if (p_.lse != nullptr) {
        p_.lse[static_cast<int64_t>(item.request) * p_.heads + head] = lse;
      }
    }
  }

  static constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

  Machine& m_;
  const LatentDecodeParameters& p_;
  const TensorMap* cache_;
  const SharedLayout layout_;
  const uint32_t base_;
  const int thread_, group_;  // group 2 is the producer warp
  const int first_head_, rows_;
  Place place_;
  uint32_t exchanged_ = 0;  // parity of the next hand-over
  float o_[kAccumulators];
  float max_[2], sum_[2], rescale_[2];  // of rows fragment_row(thread, 0) and 8 below
  uint32_t probabilities_[kProbabilities];
};

}  // namespace cinch::sm90
