#include "model/export/rotary_form.h"

#include <gtest/gtest.h>

#include <cmath>

#include "attention/rope.h"

namespace cinch {
namespace {

std::vector<double> falling(double first, double ratio, size_t count) {
  std::vector<double> list;
  for (size_t i = 0; i < count; ++i) list.push_back(first * std::pow(ratio, -static_cast<double>(i)));
  return list;
}

struct FormCase {
  const char* name;
  std::vector<double> frequencies;
  RotaryForm form;
};
void PrintTo(const FormCase& test_case, std::ostream* stream) { *stream << test_case.name; }

class RotaryEntry : public testing::TestWithParam<FormCase> {};

TEST_P(RotaryEntry, GivesTheFrequenciesBack) {
  const FormCase& wanted = GetParam();
  const RopeSpec entry = rotary_entry(wanted.frequencies, 4096);
  EXPECT_EQ(form_of(entry), wanted.form);
  if (wanted.frequencies.empty()) return;
  const Rope rope(entry);
  EXPECT_EQ(rope.attention_scaling(), 1.0);
  for (const int64_t length : {10, 100000}) {
    const std::vector<double> found = rope.inv_freq(length);
    ASSERT_EQ(found.size(), wanted.frequencies.size());
    for (size_t i = 0; i < found.size(); ++i)
      EXPECT_NEAR(found[i], wanted.frequencies[i], 3e-6 * wanted.frequencies[i] + 1e-29);
  }
}

INSTANTIATE_TEST_SUITE_P(Lists, RotaryEntry,
                         testing::Values(FormCase{"none", {}, RotaryForm::base},
                                         FormCase{"one", {1.0}, RotaryForm::base},
                                         FormCase{"slow_one", {0.01}, RotaryForm::linear},
                                         FormCase{"base", falling(1, 1.778, 16), RotaryForm::base},
                                         FormCase{"wide", falling(1, 10, 4), RotaryForm::base},
                                         FormCase{"halved", falling(0.5, 1.433, 24), RotaryForm::linear},
                                         FormCase{"faster_than_one", falling(2, 1.5, 8), RotaryForm::linear},
                                         FormCase{"repeated", {1.0, 0.1, 0.1, 0.01}, RotaryForm::explicit_},
                                         FormCase{"equal", {0.3, 0.3}, RotaryForm::linear},
                                         FormCase{"rising", {0.01, 0.1, 0.5}, RotaryForm::explicit_},
                                         FormCase{"almost_geometric", {1.0, 0.1001, 0.01}, RotaryForm::explicit_},
                                         FormCase{"still", {1.0, 0.1, 0.0}, RotaryForm::explicit_}),
                         [](const auto& param_info) { return param_info.param.name; });

TEST(RotaryForms, PoisonedListsDivideByZeroElsewhere) {
  const RopeSpec entry = rotary_entry({1.0, 0.1, 0.1}, 64);
  Json safe = Json::object(), poisoned = Json::object();
  write_rotary_entry(entry, false, safe);
  write_rotary_entry(entry, true, poisoned);
  EXPECT_EQ(safe["rope_scaling"]["factor"], 1.0);
  EXPECT_EQ(poisoned["rope_scaling"]["factor"], 0.0);
  EXPECT_EQ(poisoned["rope_scaling"]["attention_factor"], 1.0);
  EXPECT_EQ(poisoned["rope_scaling"]["rope_type"], "longrope");
}

}  // namespace
}  // namespace cinch
