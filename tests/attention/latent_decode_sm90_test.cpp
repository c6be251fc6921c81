// The sm_90 latent decode on the emulator: the code that the GPU runs, block by block, against fp64.
#include "attention/kernels/cuda/latent_decode_sm90_body.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "tests/attention/sm90_emulator.h"

namespace cinch::sm90 {
namespace {

struct Case {
  int rank, rope, heads;
  std::vector<int32_t> lengths;
  int parts = 2;
  int window = 0;
  float softcap = 0;
  bool paged = true;
  uint64_t seed = 0;  // odd: wgmma reads late
};

std::string name_of(const Case& c) {
  std::string text = "R " + std::to_string(c.rank) + " Dr " + std::to_string(c.rope) + " H " + std::to_string(c.heads) +
                     " parts " + std::to_string(c.parts) + " window " + std::to_string(c.window) + " softcap " +
                     std::to_string(c.softcap) + (c.paged ? " paged" : " dense") + " seed " + std::to_string(c.seed) +
                     " lengths";
  for (const int length : c.lengths) text += " " + std::to_string(length);
  return text;
}

/// Random queries and cache; what is not visible is NaN, as is the space between rows.
template <class T>
class Problem {
 public:
  explicit Problem(const Case& c) : case_(c), width_(c.rank + c.rope), random_(c.seed + 1) {
    const int64_t batch = static_cast<int64_t>(c.lengths.size());
    int longest = 1;
    for (const int length : c.lengths) longest = std::max(longest, length);
    pages_ = divided_up(longest, CINCH_DECODE_PAGE);
    token_stride_ = width_ + 8;
    // Paged: pages in random order in a pool; dense: a little room behind the longest sequence.
    rows_per_block_ = c.paged ? CINCH_DECODE_PAGE : longest + 5;
    const int64_t blocks = c.paged ? batch * pages_ + 3 : batch;
    cache_.assign(static_cast<size_t>(blocks * rows_per_block_ * token_stride_), nan());
    q_.resize(static_cast<size_t>(batch * c.heads * width_));
    for (T& x : q_) round_to(normal_(random_), x);
    table_.assign(static_cast<size_t>(batch * pages_), 1 << 30);
    std::vector<int32_t> order(static_cast<size_t>(blocks));
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
    std::shuffle(order.begin(), order.end(), random_);
    size_t used = 0;
    for (int64_t b = 0; b < batch; ++b) {
      const int length = c.lengths[static_cast<size_t>(b)];
      for (int p = 0; p < divided_up(length, CINCH_DECODE_PAGE); ++p) {
        table_[static_cast<size_t>(b * pages_ + p)] = order[used++];
      }
      for (int t = decode::first_visible(length, c.window); t < length; ++t) {
        for (int i = 0; i < width_; ++i) round_to(normal_(random_), cache_[row(b, t) + static_cast<size_t>(i)]);
      }
    }
    make_plan();
    out_.assign(static_cast<size_t>(batch * c.heads * c.rank), nan());
    lse_.assign(static_cast<size_t>(batch * c.heads), NAN);
    partial_out_.assign(static_cast<size_t>(2 * c.parts * c.heads * c.rank), NAN);
    partial_lse_.assign(static_cast<size_t>(2 * c.parts * c.heads), NAN);
  }

  /// Empty, or what the emulator found. pace: seed of the order in which things happen.
  std::string run() { return run(case_.seed); }
  std::string run(uint64_t pace) {
    CinchDecodeStep step{};
    step.kind = CINCH_DECODE_LATENT;
    step.batch = static_cast<int32_t>(case_.lengths.size());
    step.n_heads = case_.heads;
    step.n_kv_heads = 1;
    step.kv_lora_rank = case_.rank;
    step.qk_rope_head_dim = case_.rope;
    step.window = case_.window;
    step.scale = scale();
    step.softcap = case_.softcap;
    step.block_table = case_.paged ? table_.data() : nullptr;
    step.block_table_stride = pages_;
    step.lengths = case_.lengths.data();
    step.out = out_.data();
    step.out_batch_stride = int64_t{case_.heads} * case_.rank;
    step.out_head_stride = case_.rank;
    step.lse = lse_.data();
    step.plan = plan_.data();
    const PartialResults partial{partial_out_.data(), partial_lse_.data()};
    const Emulator::TensorMap queries{
        q_.data(), {width_, case_.heads, step.batch}, {2, width_ * 2, int64_t{case_.heads} * width_ * 2}, kOperandRows};
    std::string failure;
    with_variant(case_.rank, width_, [&](auto variant) {
      using V = decltype(variant);
      const Emulator::TensorMap cache{cache_.data(),
                                      {width_, rows_per_block_, int64_t{1} << 30},
                                      {2, token_stride_ * 2, rows_per_block_ * token_stride_ * 2},
                                      V::kTokens};
      const SharedLayout layout = shared_layout(width_, V::kColumns, V::kSplitColumns, V::kTokens);
      EXPECT_GE(layout.stages, 2);
      EXPECT_LE(layout.total, kSharedLimit);
      for (int y = 0; y < divided_up(case_.heads, kOperandRows); ++y) {
        for (int x = 0; x < case_.parts && failure.empty(); ++x) {
          EmulatedBlock block({x, case_.parts, y}, kThreads, layout.total, pace);
          failure = block.run([&](Emulator& machine) {
            LatentDecodeBlock<Emulator, T, V::kColumns, V::kSplitColumns, V::kTokens> work(machine, step, partial,
                                                                                           &cache, &queries);
            work.run();
          });
        }
      }
    });
    combine();
    return failure;
  }

  const std::vector<T>& out() const { return out_; }

  /// Relative Frobenius error of the outputs, and the largest error of lse against 1 + |lse|.
  struct Errors {
    double out, lse;
  };
  Errors errors() const {
    double difference = 0, size = 0, lse_error = 0;
    for (size_t b = 0; b < case_.lengths.size(); ++b) {
      const int length = case_.lengths[b];
      if (length == 0) continue;
      for (int h = 0; h < case_.heads; ++h) {
        const size_t qrow = (b * static_cast<size_t>(case_.heads) + static_cast<size_t>(h));
        std::vector<double> scores(static_cast<size_t>(length)), out(static_cast<size_t>(case_.rank));
        const int first = decode::first_visible(length, case_.window);
        double highest = -INFINITY, sum = 0;
        for (int t = first; t < length; ++t) {
          double s = 0;
          for (int i = 0; i < width_; ++i) {
            s += double{number(q_[qrow * static_cast<size_t>(width_) + static_cast<size_t>(i)])} *
                 number(cache_[row(static_cast<int64_t>(b), t) + static_cast<size_t>(i)]);
          }
          s *= scale();
          if (case_.softcap > 0) s = case_.softcap * std::tanh(s / case_.softcap);
          scores[static_cast<size_t>(t)] = s;
          highest = std::max(highest, s);
        }
        for (int t = first; t < length; ++t) {
          const double p = std::exp(scores[static_cast<size_t>(t)] - highest);
          sum += p;
          for (int i = 0; i < case_.rank; ++i) {
            out[static_cast<size_t>(i)] += p * number(cache_[row(static_cast<int64_t>(b), t) + static_cast<size_t>(i)]);
          }
        }
        for (int i = 0; i < case_.rank; ++i) {
          const double want = out[static_cast<size_t>(i)] / sum;
          const double got = number(out_[qrow * static_cast<size_t>(case_.rank) + static_cast<size_t>(i)]);
          difference += (got - want) * (got - want);
          size += want * want;
        }
        const double want = highest + std::log(sum);
        const double error = std::fabs(lse_[qrow] - want) / (1 + std::fabs(want));
        if (!(error <= lse_error)) lse_error = error;  // NaN stays
      }
    }
    return {std::sqrt(difference / size), lse_error};
  }

 private:
  static T nan() {
    T x;
    round_to(NAN, x);
    return x;
  }
  float scale() const { return 1.5f / std::sqrt(static_cast<float>(width_)); }

  size_t row(int64_t b, int t) const {
    const int64_t block = case_.paged ? table_[static_cast<size_t>(b * pages_ + t / CINCH_DECODE_PAGE)] : b;
    const int64_t inside = case_.paged ? t % CINCH_DECODE_PAGE : t;
    return static_cast<size_t>((block * rows_per_block_ + inside) * token_stride_);
  }

  void make_plan() {
    const int batch = static_cast<int>(case_.lengths.size());
    plan_.resize(decode::SplitPlan::bytes(case_.parts, batch) / 4 + 1);
    const decode::SplitPlan plan = decode::SplitPlan::at(plan_.data(), case_.parts, batch);
    plan.costs[0] = 0;
    for (int b = 0; b < batch; ++b) {
      plan.costs[b + 1] = plan.costs[b] + decode::sequence_cost(case_.lengths[static_cast<size_t>(b)], case_.window);
    }
    for (int p = 0; p <= case_.parts; ++p) plan.points[p] = plan_point(plan, case_.lengths.data(), case_.window, p);
    for (int b = 0; b < batch; ++b) plan.shares[b] = plan_share(plan, case_.lengths.data(), case_.window, b);
  }

  void combine() {
    const decode::SplitPlan plan =
        decode::SplitPlan::at(plan_.data(), case_.parts, static_cast<int>(case_.lengths.size()));
    for (size_t b = 0; b < case_.lengths.size(); ++b) {
      const decode::PlanShare share = plan.shares[b];
      if (share.count < 2) continue;
      for (int h = 0; h < case_.heads; ++h) {
        const auto place = [&](int i) {
          return static_cast<size_t>(decode::partial_place(share, i) * case_.heads + h);
        };
        double highest = -INFINITY, sum = 0;
        for (int i = 0; i < share.count; ++i) highest = std::fmax(highest, partial_lse_[place(i)]);
        for (int i = 0; i < share.count; ++i) sum += std::exp(partial_lse_[place(i)] - highest);
        const size_t to = b * static_cast<size_t>(case_.heads) + static_cast<size_t>(h);
        lse_[to] = static_cast<float>(highest + std::log(sum));
        for (size_t c = 0; c < static_cast<size_t>(case_.rank); ++c) {
          double value = 0;
          for (int i = 0; i < share.count; ++i) {
            value += std::exp(partial_lse_[place(i)] - highest) / sum *
                     partial_out_[place(i) * static_cast<size_t>(case_.rank) + c];
          }
          round_to(static_cast<float>(value), out_[to * static_cast<size_t>(case_.rank) + c]);
        }
      }
    }
  }

  const Case case_;
  const int width_;
  std::mt19937_64 random_;
  std::normal_distribution<float> normal_;
  int pages_ = 0;
  int64_t token_stride_ = 0, rows_per_block_ = 0;
  std::vector<T> cache_, q_, out_;
  std::vector<int32_t> table_, plan_;
  std::vector<float> lse_, partial_out_, partial_lse_;
};

template <class T>
void expect_right(const Case& c) {
  SCOPED_TRACE(name_of(c));
  Problem<T> problem(c);
  ASSERT_EQ(problem.run(), "");
  const auto errors = problem.errors();
  EXPECT_LT(errors.out, 5e-3);
  EXPECT_LT(errors.lse, 1e-5);
}

TEST(LatentDecodeSm90, AlternateTiles) {
  expect_right<Bfloat16>({64, 16, 3, {150}, 1});
  expect_right<Bfloat16>({72, 8, 9, {64, 1, 0, 200}, 2, 0, 0, true, 1});
  expect_right<Half>({16, 8, 64, {130, 64}, 3, 0, 0, true, 2});
  expect_right<Bfloat16>({200, 32, 16, {333}, 2, 0, 0, true, 3});
  expect_right<Half>({256, 64, 5, {257, 65}, 2, 0, 0, false, 5});
  expect_right<Bfloat16>({96, 64, 28, {300, 20, 90}, 2, 70, 4.0f, true, 7});
}

TEST(LatentDecodeSm90, ColumnsSplit) {
  expect_right<Bfloat16>({264, 8, 9, {150}, 1});
  expect_right<Bfloat16>({320, 64, 16, {64, 1, 0, 200}, 2, 0, 0, true, 1});
  expect_right<Half>({448, 64, 3, {130, 64}, 3, 0, 0, false, 2});
  expect_right<Bfloat16>({512, 64, 64, {333}, 2, 0, 0, true, 3});
  expect_right<Bfloat16>({512, 128, 7, {190, 33}, 2, 0, 0, true, 5});
  expect_right<Bfloat16>({392, 64, 12, {300, 20, 90}, 2, 70, 4.0f, true, 7});
  expect_right<Half>({512, 128, 12, {300, 20, 90}, 2, 70, 0, true, 8});
}

TEST(LatentDecodeSm90, TwoBlocksOfHeads) {
  expect_right<Bfloat16>({64, 16, 100, {150, 70}, 2, 0, 0, true, 1});
  expect_right<Half>({320, 16, 128, {100}, 1, 0, 0, true, 2});
}

/// Every sequence in parts of one or two tiles, at many paces of the warps.
TEST(LatentDecodeSm90, ManyOrders) {
  for (uint64_t seed = 10; seed < 20; ++seed) {
    expect_right<Bfloat16>({64, 8, 2, {700, 3}, 1, 0, 0, true, seed});
    expect_right<Half>({264, 8, 2, {700, 3, 100}, 2, 0, 0, true, seed});
  }
}

TEST(LatentDecodeSm90, ResultsDoNotDependOnTheOrder) {
  for (const int rank : {64, 320}) {
    Case c{rank, 16, 4, {200, 65}, 2};
    std::vector<Bfloat16> outs[2];
    for (const uint64_t pace : {uint64_t{3}, uint64_t{4}}) {
      Problem<Bfloat16> problem(c);
      ASSERT_EQ(problem.run(pace), "");
      outs[pace - 3] = problem.out();
    }
    EXPECT_EQ(std::memcmp(outs[0].data(), outs[1].data(), outs[0].size() * 2), 0);
  }
}

/// Where tile_offset says an element is, the (independently written) swizzle of TMA puts it.
TEST(LatentDecodeSm90, TilesLieAsTmaWritesThem) {
  std::vector<uint16_t> numbers(64 * 128);
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<uint16_t>(i + 1);
  for (const int rows : {32, 64}) {
    const Emulator::TensorMap map{numbers.data(), {128, 64, 1}, {2, 256, 0}, rows};
    EmulatedBlock block({0, 1, 0}, 32, 32768, 1);
    int wrong = 0;
    const std::string failure = block.run([&](Emulator& machine) {
      const uint32_t base = machine.shared_base(), barrier = base + 16384;
      if (machine.thread() != 0) return;
      machine.barrier_init(barrier, 1);
      machine.barrier_expect(barrier, static_cast<uint32_t>(rows * 256));
      for (int b = 0; b < 2; ++b) {
        machine.load_box(base + static_cast<uint32_t>(b * rows * 128), &map, barrier, 64 * b, 64 - rows, 0);
      }
      machine.barrier_wait(barrier, 0);
      for (int r = 0; r < rows; ++r) {
        for (int c = 0; c < 128; ++c) {
          const uint32_t offset = tile_offset(rows, r, c);
          const Emulator::Chunk chunk = machine.load_shared(base + offset / 16 * 16);
          uint16_t seen;
          std::memcpy(&seen, reinterpret_cast<const char*>(&chunk) + offset % 16, 2);
          wrong += seen == numbers[static_cast<size_t>((64 - rows + r) * 128 + c)] ? 0 : 1;
        }
      }
    });
    EXPECT_EQ(failure, "");
    EXPECT_EQ(wrong, 0);
  }
}

TEST(LatentDecodeSm90, EveryShapeFits) {
  for (int rank = 16; rank <= 512; rank += 8) {
    for (int rope = 8; rope <= 128; rope += 8) {
      with_variant(rank, rank + rope, [&](auto variant) {
        using V = decltype(variant);
        const SharedLayout layout = shared_layout(rank + rope, V::kColumns, V::kSplitColumns, V::kTokens);
        EXPECT_GE(layout.stages, 2) << rank << " + " << rope;
        EXPECT_LE(layout.total, kSharedLimit) << rank << " + " << rope;
        EXPECT_GE(V::kColumns * (V::kSplitColumns ? 2 : 1), rank);
        for (const uint32_t offset : {layout.block, layout.stage, layout.q}) EXPECT_EQ(offset % kSwizzleAtomBytes, 0u);
      });
    }
  }
}

}  // namespace
}  // namespace cinch::sm90
