// Progress and log lines on stderr: one live line per phase on a terminal, plain lines in a file. Results never go
// here.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace cinch {

enum class Verbosity { quiet, normal, verbose };

/// Process-wide; set once by the program from --quiet and -v.
void set_verbosity(Verbosity verbosity);
Verbosity verbosity();

void log_info(std::string_view message);     // hidden by --quiet
void log_detail(std::string_view message);   // shown by -v
void log_warning(std::string_view message);  // always shown, "warning: ..."

/// One phase of long work: "[2/4] convert  layer 12/30  3.1 layers/s  ETA 0:06".
class Progress {
 public:
  struct Options {
    std::string phase;         // "convert"
    std::string unit;          // "layers", "tokens"
    uint64_t total = 0;        // 0: unknown
    int index = 1, count = 1;  // phase n of m
  };
  explicit Progress(Options options);
  ~Progress();
  void advance(uint64_t by = 1);
  /// What stands behind the speed from the next line on: "loss 2.31".
  void set_note(std::string note) { note_ = std::move(note); }
  void finish();

 private:
  void print(bool last);
  Options options_;
  std::string note_;
  uint64_t done_ = 0;
  std::chrono::steady_clock::time_point start_, printed_;
  bool finished_ = false;
};

/// Installs handlers for SIGINT, SIGTERM and SIGUSR1: the first sets a flag, a second of the former two ends (130).
void install_interrupt_handlers();
bool interrupt_requested();
/// Throws InterruptedError when the flag is set. Called at safe points (after a layer, a batch).
void check_interrupt(std::string_view help = {});

}  // namespace cinch
