// Which entry of a stock config.json or GGUF gives a list of rotary frequencies: runtimes compute them from a base and
// a rule. Facts: docs/export.md. No torch.
#pragma once

#include <optional>
#include <vector>

#include "attention/attention_spec.h"
#include "core/json.h"

namespace cinch {

enum class RotaryForm {
  base,      // inv_freq_s = base^(-2s/Dr), slot 0 turns once per token
  linear,    // the same over one factor
  explicit_  // longrope with one divisor per slot: any list
};

/// The simplest form of these frequencies (radians per token, (Dr/2) of them, all positive), to 2e-6 of each, as an
/// entry whose Rope gives them back: type default, linear or longrope.
RopeSpec rotary_entry(const std::vector<double>& inv_freq, int64_t max_position_embeddings);
RotaryForm form_of(const RopeSpec& entry);

/// rope_theta and rope_scaling in the spelling that transformers 4.57 and 5 both read. `poison`: a longrope entry gets
/// the factor 0, by which runtimes that take the table for YaRN divide, instead of computing other frequencies in
/// silence.
void write_rotary_entry(const RopeSpec& entry, bool poison, Json& config);

}  // namespace cinch
