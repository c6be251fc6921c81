#include "eval/perplexity.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/errors.h"

namespace cinch {
namespace {

TEST(Protocol, RoundTrips) {
  for (const char* id : {"ppl-gptq-2048", "ppl-gptq-128", "ppl-stride-512-64", "ppl-llamacpp-512"})
    EXPECT_EQ(parse_protocol(id).id(), id);
  EXPECT_EQ(parse_protocol("gptq").id(), "ppl-gptq-2048");
  EXPECT_EQ(parse_protocol("ppl-stride-512").id(), "ppl-stride-512-128");
  EXPECT_EQ(parse_protocol("llamacpp").id(), "ppl-llamacpp-512");
}

TEST(Protocol, RefusesUnknownForms) {
  for (const char* id : {"", "ppl", "foo", "ppl-gptq-x", "ppl-gptq-", "ppl-gptq-1", "ppl-gptq--5", "ppl-gptq-10-2",
                         "ppl-stride-10-11", "ppl-stride-10-0", "ppl-gptq-99999999999999999999"}) {
    EXPECT_THROW(parse_protocol(id), UsageError) << id;
  }
}

TEST(Perplexity, ErrorIsOverWindows) {
  const PerplexityResult result = perplexity_of(parse_protocol("ppl-gptq-3"), {1, 3, 4, 4}, {2, 2});
  EXPECT_DOUBLE_EQ(result.mean_nll, 3);
  EXPECT_DOUBLE_EQ(result.value, std::exp(3));
  EXPECT_NEAR(result.stderr_value, std::exp(3) * 1.0, 1e-12);  // window means 2 and 4: sd sqrt(2), over sqrt(2)
}

TEST(Perplexity, OneWindowHasNoError) {
  const PerplexityResult result = perplexity_of(parse_protocol("ppl-gptq-3"), {1, 3}, {2});
  EXPECT_TRUE(std::isnan(result.stderr_value));
  EXPECT_NE(result.to_json().dump().find("\"stderr\":null"), std::string::npos);
}

}  // namespace
}  // namespace cinch
