#include "convert/output_check.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "convert/converter.h"
#include "core/digest.h"
#include "core/errors.h"
#include "model/decoder_model.h"
#include "tests/convert/tiny_model.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

class OutputCheckTest : public testing::Test {
 protected:
  OutputCheckTest()
      : partial_((write_tiny_model(folder_ / "written", {.kv_heads = 2}), folder_ / "out"), Json::object(),
                 PartialFolder::Start::fresh) {
    parse_target("gqa:2", recipe_);
    recipe_.method = "mean";
    plan_ = plan_conversion(ConfigOnlySource(tiny_config({})), recipe_, {.output = "out"});
    const auto source = ModelSource::open(folder_ / "written");
    for (const TensorInfo& info : source->tensors().tensors())
      digests_[info.name] = xxh3_hex(source->tensors().read(info.name).bytes);
    for (int64_t layer = 0; layer < 2; ++layer) {
      const std::string name = fmt_name(layer);
      partial_.store_layer(layer, {{name, {Dtype::kF32, source->tensor(name, at::kFloat)}}}, Json::object());
    }
    window_ = at::arange(20, at::kLong);
    logits_ = DecoderModel(source, at::kFloat).forward(window_.unsqueeze(0))[0].narrow(0, 0, 10).clone();
  }
  static std::string fmt_name(int64_t layer) {
    return "model.layers." + std::to_string(layer) + ".self_attn.k_proj.weight";
  }
  VerificationResult check() const {
    return check_output({.path = folder_ / "written",
                         .format = "hf",
                         .plan = plan_,
                         .partial = partial_,
                         .digests = digests_,
                         .window = window_,
                         .logits = logits_});
  }

  TempFolder folder_;
  ConversionRecipe recipe_;
  ConversionPlan plan_;
  PartialFolder partial_;
  std::map<std::string, std::string> digests_;
  at::Tensor window_, logits_;
};

TEST_F(OutputCheckTest, WhatWasMeantPasses) {
  const VerificationResult result = check();
  EXPECT_EQ(result.tensors, 2);
  EXPECT_EQ(result.tokens, 10);
  EXPECT_LT(result.max_abs_logit_difference, 1e-5);
}

TEST_F(OutputCheckTest, ADifferentDigestIsNamed) {
  digests_["model.norm.weight"][0] = digests_["model.norm.weight"][0] == '0' ? '1' : '0';
  try {
    check();
    FAIL();
  } catch (const VerificationError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("model.norm.weight"));
  }
}

TEST_F(OutputCheckTest, ADifferentDerivedTensorIsNamed) {
  partial_.store_layer(1, {{fmt_name(1), {Dtype::kF32, at::zeros({16, 32})}}}, Json::object());
  EXPECT_THROW(check(), VerificationError);
}

TEST_F(OutputCheckTest, DifferentLogitsAreRefused) {
  logits_[3][5] += 1;
  EXPECT_THROW(check(), VerificationError);
  logits_[3][5] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THROW(check(), VerificationError);
}

}  // namespace
}  // namespace cinch
