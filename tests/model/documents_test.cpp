// Several documents in one window give what each of them gives alone.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/errors.h"
#include "model/decoder_model.h"
#include "tests/model/golden.h"
#include "tests/model/latent_model.h"

namespace cinch {
namespace {

constexpr int64_t kWindow = 14;
/// Lengths of the documents of two windows.
const std::vector<std::vector<int64_t>> kLengths = {{5, 9}, {3, 1, 10}};

at::Tensor documents_of(const std::vector<std::vector<int64_t>>& lengths, int64_t first = 0) {
  std::vector<at::Tensor> rows;
  for (const std::vector<int64_t>& row : lengths) {
    std::vector<at::Tensor> parts;
    int64_t start = first;
    for (const int64_t length : row) {
      parts.push_back(at::full({length}, start, at::kLong));
      start += length;
    }
    rows.push_back(at::cat(parts));
  }
  return at::stack(rows);
}

struct Weights {
  ModelConfig config;
  std::vector<LayerWeights> layers;
  at::Tensor embedded;  // (2, T, E)

  explicit Weights(const ModelSource& source) : config(source.config()) {
    for (int64_t layer = 0; layer < config.n_layers; ++layer)
      layers.push_back(source.family().read_layer(config, layer, source.reader(at::kDouble)));
    at::manual_seed(6);
    embedded = ModelTrunk(source, at::kDouble, at::kCPU)
                   .embed(at::randint(config.vocab_size, {static_cast<int64_t>(kLengths.size()), kWindow}, at::kLong));
  }

  /// Those of the attention, as leaves of autograd.
  std::vector<at::Tensor> leaves() {
    std::vector<at::Tensor> result;
    for (LayerWeights& layer : layers) {
      std::vector<at::Tensor*> list;
      if (auto* grouped = std::get_if<GroupedQueryWeights>(&layer.attention)) {
        list = {&grouped->q_proj, &grouped->k_proj, &grouped->v_proj, &grouped->o_proj};
      } else {
        auto& latent = std::get<LatentWeights>(layer.attention);
        list = {&latent.q_proj, &latent.kv_a_proj, &latent.kv_b_proj, &latent.o_proj};
      }
      for (at::Tensor* tensor : list) {
        *tensor = tensor->detach().clone().requires_grad_(true);
        result.push_back(*tensor);
      }
    }
    return result;
  }

  /// Of length-dependent RoPE the form for the window, whatever a document's own length.
  at::Tensor run(at::Tensor h, const at::Tensor& documents) const {
    for (int64_t layer = 0; layer < config.n_layers; ++layer)
      h = DecoderLayer(config, layer, layers[static_cast<size_t>(layer)]).forward(h, 0, kWindow, nullptr, documents);
    return h;
  }
};

/// Hidden states of the windows, and the gradients of a sum of them.
struct Outcome {
  at::Tensor hidden;
  std::vector<at::Tensor> gradients;
};

Outcome outcome(Weights& weights, const std::function<at::Tensor()>& hidden) {
  const std::vector<at::Tensor> leaves = weights.leaves();
  const at::Tensor h = hidden();
  at::manual_seed(8);
  (h * at::randn_like(h)).sum().backward();
  Outcome result{h.detach(), {}};
  for (const at::Tensor& leaf : leaves) result.gradients.push_back(leaf.grad());
  return result;
}

void expect_documents_alone(const ModelSource& source) {
  Weights weights(source);
  const Outcome packed = outcome(weights, [&] { return weights.run(weights.embedded, documents_of(kLengths)); });
  const Outcome alone = outcome(weights, [&] {
    std::vector<at::Tensor> rows;
    for (size_t b = 0; b < kLengths.size(); ++b) {
      std::vector<at::Tensor> parts;
      for (const at::Tensor& part : weights.embedded[static_cast<int64_t>(b)].split_with_sizes(kLengths[b]))
        parts.push_back(weights.run(part.unsqueeze(0), {}).squeeze(0));
      rows.push_back(at::cat(parts));
    }
    return at::stack(rows);
  });
  EXPECT_LT(relative_difference(packed.hidden, alone.hidden), 1e-10);
  ASSERT_EQ(packed.gradients.size(), alone.gradients.size());
  for (size_t i = 0; i < packed.gradients.size(); ++i)
    EXPECT_LT(relative_difference(packed.gradients[i], alone.gradients[i]), 1e-10) << i;
  // The first documents are the same with or without what follows, later ones are not.
  const at::Tensor joined = weights.run(weights.embedded, {}).detach();
  EXPECT_LT(relative_difference(joined[0].slice(0, 0, 5), alone.hidden[0].slice(0, 0, 5)), 1e-10);
  EXPECT_GT(relative_difference(joined[0].slice(0, 5), alone.hidden[0].slice(0, 5)), 1e-5);
}

class DocumentsOf : public testing::TestWithParam<GoldenCase> {};

TEST_P(DocumentsOf, AreWhatTheyAreAlone) { expect_documents_alone(*GoldenModel(GetParam()).open()); }

INSTANTIATE_TEST_SUITE_P(Families, DocumentsOf, testing::ValuesIn(golden_cases()), [](const auto& param_info) {
  std::string name = param_info.param.name;
  std::replace(name.begin(), name.end(), '/', '_');
  return name;
});

class LatentDocumentsOf : public testing::TestWithParam<GoldenCase> {};

TEST_P(LatentDocumentsOf, AreWhatTheyAreAlone) {
  const TempFolder folder;
  const auto source = GoldenModel(GetParam()).open();
  const LatentSizes sizes = {.rank = 13, .nope = 7, .rotary = 6, .value = 9};
  write_latent_model(with_latent_layers(*source, {{0, sizes}, {1, sizes}}), *source,
                     {.output = folder / "latent", .format = "native", .dtype = "f32"});
  expect_documents_alone(*ModelSource::open(folder / "latent"));
}

INSTANTIATE_TEST_SUITE_P(Families, LatentDocumentsOf, testing::ValuesIn(grouped_golden_families()),
                         [](const auto& param_info) { return param_info.param.name; });

TEST(Documents, OneDocumentIsThePlainWindow) {
  const Weights weights(*GoldenModel({"llama_gqa"}).open());
  EXPECT_TRUE(at::equal(weights.run(weights.embedded, documents_of({{kWindow}, {kWindow}})),
                        weights.run(weights.embedded, {})));
}

TEST(Documents, GoOnFromACache) {
  for (const char* name : {"llama_gqa", "gemma2", "deepseek_v2"}) {
    const Weights weights(*GoldenModel({name}).open());
    const at::Tensor documents = documents_of(kLengths);
    const DecoderLayer layer(weights.config, 0, weights.layers[0]);
    KvCache cache;
    std::vector<at::Tensor> parts;
    int64_t first = 0;
    for (const int64_t count : {4, 1, 7, 2}) {
      parts.push_back(layer.forward(weights.embedded.narrow(1, first, count), first, kWindow, &cache,
                                    documents.narrow(1, first, count)));
      first += count;
    }
    const at::Tensor whole = layer.forward(weights.embedded, 0, kWindow, nullptr, documents);
    EXPECT_LT(relative_difference(at::cat(parts, 1), whole), 1e-10) << name;
  }
}

TEST(Documents, OfOtherTokensAreRefused) {
  const Weights weights(*GoldenModel({"llama_gqa"}).open());
  EXPECT_THROW(weights.run(weights.embedded, documents_of({{kWindow}})), ShapeError);
  EXPECT_THROW(weights.run(weights.embedded, documents_of({{5}, {5}})), ShapeError);
  EXPECT_THROW(weights.run(weights.embedded, documents_of(kLengths).to(at::kInt)), ShapeError);
}

}  // namespace
}  // namespace cinch
