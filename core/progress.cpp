#include "core/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>

#include "core/errors.h"

namespace cinch {
namespace {

std::atomic<Verbosity> g_verbosity{Verbosity::normal};
std::atomic<int> g_interrupts{0};
static_assert(std::atomic<int>::is_always_lock_free, "a signal handler may only touch lock-free atomics");

void on_interrupt(int) {
  if (g_interrupts.fetch_add(1) > 0) ::_exit(static_cast<int>(ExitCode::interrupted));
}

bool stderr_is_terminal() {
  static const bool terminal = ::isatty(STDERR_FILENO) == 1;
  return terminal;
}

std::string clock_text(double seconds) {
  const auto total = static_cast<long>(std::min(seconds, 359999.0) + 0.5);
  if (total >= 3600) return fmt::format("{}:{:02}:{:02}", total / 3600, total / 60 % 60, total % 60);
  return fmt::format("{}:{:02}", total / 60, total % 60);
}

/// Never fails: a log that nobody can read is no reason to stop, least of all in a destructor.
void print_error_text(const std::string& text) noexcept { std::fputs(text.c_str(), stderr); }

void print_line(std::string_view prefix, std::string_view message) {
  print_error_text(fmt::format("{}{}{}\n", stderr_is_terminal() ? "\r\x1b[K" : "", prefix, message));
}

}  // namespace

void set_verbosity(Verbosity verbosity) { g_verbosity = verbosity; }
Verbosity verbosity() { return g_verbosity; }

void log_info(std::string_view message) {
  if (verbosity() != Verbosity::quiet) print_line("", message);
}

void log_detail(std::string_view message) {
  if (verbosity() == Verbosity::verbose) print_line("", message);
}

void log_warning(std::string_view message) { print_line("warning: ", message); }

Progress::Progress(Options options)
    : options_(std::move(options)), start_(std::chrono::steady_clock::now()), printed_(start_) {
  if (stderr_is_terminal()) print(false);
}

Progress::~Progress() {
  if (!finished_ && stderr_is_terminal() && verbosity() != Verbosity::quiet) print_error_text("\n");
}

void Progress::advance(uint64_t by) {
  done_ += by;
  const auto now = std::chrono::steady_clock::now();
  // A terminal line may be redrawn often; a log file gets a line every ten seconds.
  const auto pause = stderr_is_terminal() ? std::chrono::milliseconds(100) : std::chrono::milliseconds(10000);
  if (now - printed_ < pause) return;
  printed_ = now;
  print(false);
}

void Progress::finish() {
  if (finished_) return;
  finished_ = true;
  print(true);
}

void Progress::print(bool last) {
  if (verbosity() == Verbosity::quiet) return;
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  const double rate = seconds > 0 ? static_cast<double>(done_) / seconds : 0;
  std::string line = fmt::format("[{}/{}] {:<9} {}", options_.index, options_.count, options_.phase, done_);
  if (options_.total > 0) line += fmt::format("/{}", options_.total);
  line += fmt::format(" {}", options_.unit);
  if (rate > 0) line += fmt::format("  {:.{}f}/s", rate, rate < 10 ? 2 : 0);
  if (last) {
    line += fmt::format("  in {}", clock_text(seconds));
  } else if (rate > 0 && options_.total > done_) {
    line += fmt::format("  ETA {}", clock_text(static_cast<double>(options_.total - done_) / rate));
  }
  if (stderr_is_terminal()) {
    print_error_text(fmt::format("\r\x1b[K{}{}", line, last ? "\n" : ""));
  } else {
    print_error_text(line + "\n");
  }
  std::fflush(stderr);
}

void install_interrupt_handlers() {
  struct sigaction action {};
  action.sa_handler = on_interrupt;
  ::sigemptyset(&action.sa_mask);
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

bool interrupt_requested() { return g_interrupts.load() > 0; }

void check_interrupt(std::string_view help) {
  if (interrupt_requested()) throw InterruptedError("interrupted", std::string(help));
}

}  // namespace cinch
