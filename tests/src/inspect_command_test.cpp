#include <gmock/gmock.h>

#include "tests/model/latent_model.h"
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

TEST(InspectCommand, ShowsLatentLayers) {
  const auto source = ModelSource::open(tiny_model());
  TempFolder folder;
  write_latent_model(with_latent_layers(*source, {{1, {.rank = 9, .nope = 3, .rotary = 4, .value = 5}}}), *source,
                     {.output = folder / "out", .format = "hdf5"});
  const Outcome outcome = run_cinch({"inspect", (folder / "out").string(), "--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Json layers = outcome.json()["layers"];
  EXPECT_EQ(layers[0]["kind"], "grouped_query");
  EXPECT_TRUE(layers[0]["kv_lora_rank"].is_null());
  EXPECT_EQ(layers[1]["kind"], "latent");
  EXPECT_EQ(layers[1]["n_kv_heads"], 3);
  EXPECT_EQ(layers[1]["kv_lora_rank"], 9);
  EXPECT_EQ(layers[1]["qk_nope_head_dim"], 3);
  EXPECT_EQ(layers[1]["qk_rope_head_dim"], 4);
  EXPECT_EQ(layers[1]["v_head_dim"], 5);
  EXPECT_EQ(layers[1]["key_scale_tail"], false);
  EXPECT_EQ(layers[1]["kv_elements"], 13);
  EXPECT_EQ(outcome.json()["kv_bytes_per_token"], 2 * (24 + 13));
  const Outcome text = run_cinch({"inspect", (folder / "out").string()});
  EXPECT_THAT(text.out, testing::ContainsRegex("1 +MLA +9 +3 +4 +9 +4 +- +13 +26"));
  EXPECT_THAT(text.out, testing::ContainsRegex("0 +GQA +9 +3 +4 +- +- +- +24 +48"));
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
