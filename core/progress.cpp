#include "core/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>

#include "core/errors.h"

namespace cinch {
namespace {

std::atomic<Verbosity> g_verbosity{Verbosity::normal};
std::atomic<bool> g_stop{false};
std::atomic<int64_t> g_first_interrupt{0};  // ns of the monotonic clock; 0: none yet
static_assert(std::atomic<int64_t>::is_always_lock_free && std::atomic<bool>::is_always_lock_free,
              "a signal handler may only touch lock-free atomics");
// A scheduler sends SIGTERM to every process of a job, and a launcher among them passes its own on.
constexpr int64_t kSameRequest = 3'000'000'000;  // ns

/// SIGUSR1 only asks, however often it comes: what schedulers send some time before they end a job.
void on_stop_request(int) { g_stop = true; }

void on_interrupt(int signal) {
  g_stop = true;
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  const int64_t time = int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec + 1;
  int64_t first = 0;
  if (g_first_interrupt.compare_exchange_strong(first, time)) return;
  if (signal == SIGTERM && time - first < kSameRequest) return;
  ::_exit(static_cast<int>(ExitCode::interrupted));
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
  if (!note_.empty()) line += "  " + note_;
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
  action.sa_handler = on_stop_request;
  ::sigaction(SIGUSR1, &action, nullptr);
}

bool interrupt_requested() { return g_stop; }

void check_interrupt(std::string_view help) {
  if (interrupt_requested()) throw InterruptedError("interrupted", std::string(help));
}

}  // namespace cinch
