#include "checkpoints/sink_ledger.h"

#include <gmock/gmock.h>

#include "core/digest.h"
#include "tests/checkpoints/helpers.h"

namespace cinch {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::vector<TensorInfo> numbered(int count) {
  std::vector<TensorInfo> infos;
  for (int i = 0; i < count; ++i) infos.push_back({"t" + std::to_string(i), Dtype::kF16, {9, 3}, ""});
  return infos;
}

SinkLedger ledger_of(const std::vector<TensorInfo>& infos) {
  SinkLedger ledger;
  ledger.declare(infos, "out.bin");
  return ledger;
}

TEST(SinkLedger, TellsPlacesAndDigests) {
  SinkLedger ledger = ledger_of(numbered(3));
  const auto bytes = counting_bytes(54);
  EXPECT_EQ(ledger.accept("t2", bytes), 2u);
  EXPECT_EQ(ledger.accept("t0", bytes), 0u);
  EXPECT_EQ(ledger.digests().size(), 2u);
  EXPECT_EQ(ledger.digests().at("t2"), xxh3_hex(bytes));
  EXPECT_FALSE(ledger.digests().contains("t1"));
  ASSERT_EQ(ledger.tensors().size(), 3u);
  EXPECT_EQ(ledger.tensors()[1].name, "t1");
}

TEST(SinkLedger, NothingDeclaredIsComplete) { EXPECT_NO_THROW(ledger_of({}).check_complete()); }

TEST(SinkLedger, WhatIsMissingIsNamedUpToFive) {
  SinkLedger ledger = ledger_of(numbered(7));
  std::string fault = fault_of([&] { ledger.check_complete(); });
  EXPECT_THAT(fault, HasSubstr("out.bin: 7 declared tensors were not written"));
  EXPECT_THAT(fault, HasSubstr("\"t0\", \"t1\", \"t2\", \"t3\", \"t4\", ..."));
  EXPECT_THAT(fault, Not(HasSubstr("t5")));
  for (const char* name : {"t0", "t2", "t4"}) ledger.accept(name, counting_bytes(54));
  fault = fault_of([&] { ledger.check_complete(); });
  EXPECT_THAT(fault, HasSubstr("4 declared tensors were not written: \"t1\", \"t3\", \"t5\", \"t6\""));
  EXPECT_THAT(fault, Not(HasSubstr("...")));
  for (const char* name : {"t1", "t3", "t5", "t6"}) ledger.accept(name, counting_bytes(54));
  EXPECT_NO_THROW(ledger.check_complete());
}

TEST(SinkLedger, ARefusedWriteIsNotCounted) {
  SinkLedger ledger = ledger_of(numbered(1));
  const std::string fault = fault_of([&] { ledger.accept("t0", counting_bytes(53)); });
  EXPECT_THAT(fault, HasSubstr("out.bin: tensor \"t0\" needs 54 bytes, 53 were given"));
  EXPECT_THROW(ledger.check_complete(), CheckpointError);
  EXPECT_TRUE(ledger.digests().empty());
  // The right bytes are still welcome, and their digest stays when a second write is refused.
  const auto right = counting_bytes(54);
  ledger.accept("t0", right);
  EXPECT_THROW(ledger.accept("t0", counting_bytes(54, 9)), UsageError);
  EXPECT_EQ(ledger.digests().at("t0"), xxh3_hex(right));
}

TEST(SinkLedger, FaultsOfDeclarationsNameFileAndTensor) {
  const auto declare = [](std::vector<TensorInfo> infos) { return fault_of([&] { ledger_of(infos); }); };
  EXPECT_THAT(declare({{"twice", Dtype::kF32, {1}, ""}, {"twice", Dtype::kF32, {1}, ""}}),
              HasSubstr("out.bin: tensor \"twice\" is declared twice"));
  EXPECT_THAT(declare({{"a", Dtype::kF32, {2, -3}, ""}}), HasSubstr("out.bin: tensor \"a\""));
  EXPECT_THAT(declare({{"half", Dtype::kF4, {3}, ""}}), HasSubstr("whole bytes"));
  EXPECT_THAT(declare({{"a\nb", Dtype::kF32, {1}, ""}}), HasSubstr("control character"));
  EXPECT_THAT(fault_of([] { ledger_of(numbered(1)).accept("t1", {}); }), HasSubstr("\"t1\" was not declared"));
}

}  // namespace
}  // namespace cinch
