#include <gmock/gmock.h>

#include "tests/src/run_cinch.h"

namespace cinch {
namespace {

using testing::HasSubstr;

TEST(InspectCommand, JsonKeys) {
  const Outcome outcome = run_cinch({"inspect", tiny_model(), "--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Json json = outcome.json();
  EXPECT_EQ(json["architecture"], "LlamaForCausalLM");
  EXPECT_EQ(json["n_layers"], 2);
  ASSERT_EQ(json["layers"].size(), 2u);
  for (const char* key :
       {"kind", "n_heads", "n_kv_heads", "head_dim", "kv_lora_rank", "qk_rope_head_dim", "kv_elements"}) {
    EXPECT_TRUE(json["layers"][0].contains(key)) << key;
  }
  EXPECT_EQ(json["layers"][0]["n_heads"], 9);
  EXPECT_EQ(json["layers"][0]["n_kv_heads"], 3);
  EXPECT_EQ(json["layers"][0]["kv_elements"], 2 * 3 * 4);
  EXPECT_EQ(json["kv_bytes_per_token"], 2 * 2 * 24);
  EXPECT_EQ(json["kv_bytes_at"]["4096"], 96 * 4096);
  EXPECT_EQ(json["kv_bytes_at"]["131072"], 96 * 131072);
  // embedding 61 x 36; per layer q, o 36 x 36, k, v 12 x 36, three MLP 20 x 36, two norms; final norm
  EXPECT_EQ(json["parameters"], 61 * 36 + 2 * (2 * 36 * 36 + 2 * 12 * 36 + 3 * 20 * 36 + 2 * 36) + 36);
  EXPECT_EQ(json["dtype"], "float32");
  EXPECT_FALSE(json.contains("tensors"));
}

TEST(InspectCommand, ListsTensors) {
  const Outcome outcome = run_cinch({"inspect", tiny_model(), "--tensors", "--json"});
  EXPECT_EQ(outcome.json()["tensors"].size(), outcome.json()["file"]["tensors"].get<size_t>());
  const Outcome text = run_cinch({"inspect", tiny_model(), "--tensors"});
  EXPECT_THAT(text.out, HasSubstr("model.layers.1.mlp.down_proj.weight"));
  EXPECT_THAT(text.out, HasSubstr("GQA"));
}

}  // namespace
}  // namespace cinch
