#include "train/launch/launch_children.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>
#include <thread>

#include "core/errors.h"
#include "core/progress.h"
#include "train/launch/launch.h"

extern char** environ;

namespace cinch {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kInterrupted = static_cast<int>(ExitCode::interrupted);

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { close(); }
  int get() const { return fd_; }
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }

 private:
  int fd_;
};

[[noreturn]] void refused(const std::string& what, int error) {
  throw ResourceError(fmt::format("--nproc: cannot {}: {}", what, std::strerror(error)),
                      "ask for fewer processes, or raise the limits (ulimit -u, ulimit -n)");
}

int usable_cores() {
  cpu_set_t set;
  if (::sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  return static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
}

/// What exec takes: made before the fork, as little is allowed after it.
class Strings {
 public:
  explicit Strings(std::vector<std::string> strings) : strings_(std::move(strings)) {
    for (std::string& string : strings_) pointers_.push_back(string.data());
    pointers_.push_back(nullptr);
  }
  char* const* get() const { return pointers_.data(); }

 private:
  std::vector<std::string> strings_;
  std::vector<char*> pointers_;
};

std::vector<std::string> child_environment(const Launch& launch) {
  const Environment own = {{kChildRank, std::to_string(launch.rank)},
                           {kChildWorld, std::to_string(launch.world)},
                           {kChildStore, launch.store_file}};
  std::vector<std::string> variables;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string_view text = *variable;
    if (own.count(std::string(text.substr(0, text.find('=')))) == 0) variables.emplace_back(text);
  }
  for (const auto& [name, value] : own) variables.push_back(fmt::format("{}={}", name, value));
  if (std::getenv("OMP_NUM_THREADS") == nullptr)
    variables.push_back(fmt::format("OMP_NUM_THREADS={}", std::max(1, usable_cores() / launch.world)));
  return variables;
}

/// So that a contradiction with another launcher is told once, not by every child.
void check_launchers(const Launch& launch) {
  Environment environment = current_environment();
  environment.insert_or_assign(kChildRank, std::to_string(launch.rank));
  environment.insert_or_assign(kChildWorld, std::to_string(launch.world));
  environment.insert_or_assign(kChildStore, launch.store_file);
  resolve_launch(environment);
}

std::string running_program() {
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  // The link still opens a program whose file has been replaced; its name would not.
  return !error && std::filesystem::exists(program, error) ? program.string() : "/proc/self/exe";
}

/// In the child: only calls that are safe between fork and exec.
[[noreturn]] void become(const char* program, char* const* arguments, char* const* environment, pid_t parent,
                         const sigset_t& mask, int report) {
  // Its own group: Ctrl-C in a terminal would else reach it twice, once through the parent.
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(kInterrupted);
  ::sigprocmask(SIG_SETMASK, &mask, nullptr);
  ::execve(program, arguments, environment);
  const int error = errno;
  [[maybe_unused]] const ssize_t written = ::write(report, &error, sizeof error);
  ::_exit(127);
}

/// SIGCHLD is kept for sigtimedwait, whatever was done with it before.
class ChildSignal {
 public:
  ChildSignal() {
    struct sigaction action {};
    action.sa_handler = SIG_DFL;
    ::sigaction(SIGCHLD, &action, &old_action_);
    ::sigemptyset(&set_);
    ::sigaddset(&set_, SIGCHLD);
    ::pthread_sigmask(SIG_BLOCK, &set_, &old_mask_);
  }
  ChildSignal(const ChildSignal&) = delete;
  ChildSignal& operator=(const ChildSignal&) = delete;
  ~ChildSignal() {
    ::pthread_sigmask(SIG_SETMASK, &old_mask_, nullptr);
    ::sigaction(SIGCHLD, &old_action_, nullptr);
  }
  const sigset_t& old_mask() const { return old_mask_; }
  void wait(std::chrono::milliseconds longest) const {
    const timespec time = {longest.count() / 1000, longest.count() % 1000 * 1'000'000};
    ::sigtimedwait(&set_, nullptr, &time);
  }

 private:
  sigset_t set_{}, old_mask_{};
  struct sigaction old_action_ {};
};

class Children {
 public:
  explicit Children(std::chrono::milliseconds grace) : grace_(grace) {}
  Children(const Children&) = delete;
  Children& operator=(const Children&) = delete;
  ~Children() {
    signal_all(SIGKILL);
    for (const pid_t child : children_) {
      if (child != 0) ::waitpid(child, nullptr, 0);
    }
  }

  void start(const std::string& program, const Strings& arguments, const Strings& environment) {
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) refused("start a process", errno);
    const Descriptor in(ends[0]);
    Descriptor out(ends[1]);
    const pid_t parent = ::getpid(), child = ::fork();
    if (child == 0) become(program.c_str(), arguments.get(), environment.get(), parent, signal_.old_mask(), out.get());
    if (child < 0) refused("start a process", errno);
    children_.push_back(child);
    out.close();
    int error = 0;
    ssize_t got = 0;
    while ((got = ::read(in.get(), &error, sizeof error)) < 0 && errno == EINTR) {
    }
    if (got > 0) refused("start " + program, error);
  }

  /// Until all have ended; the first failing exit code, or 0.
  int wait() {
    while (reap()) {
      if (interrupt_requested() && !stopping_) {
        stopping_ = true;
        signal_all(SIGUSR1);
      }
      if (deadline_ && Clock::now() >= *deadline_) {
        deadline_.reset();
        signal_all(SIGKILL);
      }
      signal_.wait(std::chrono::milliseconds(50));
    }
    return code_;
  }

 private:
  void signal_all(int signal) const {
    for (const pid_t child : children_) {
      if (child != 0) ::kill(child, signal);
    }
  }

  /// Whether any is left.
  bool reap() {
    bool left = false;
    for (size_t rank = 0; rank < children_.size(); ++rank) {
      if (children_[rank] == 0) continue;
      int status = 0;
      const pid_t got = ::waitpid(children_[rank], &status, WNOHANG);
      if (got == 0) {
        left = true;
        continue;
      }
      children_[rank] = 0;
      ended(rank, got > 0 ? status : W_EXITCODE(1, 0));
    }
    return left;
  }

  void ended(size_t rank, int status) {
    const int signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    int code = signal != 0 ? 128 + signal : WEXITSTATUS(status);
    if (stopping_ && signal == SIGUSR1) code = kInterrupted;  // asked before it could listen
    if (code_ == 0) code_ = code;
    // The interrupted have agreed to stop and save; the others are about to end too.
    if (code == 0 || code == kInterrupted || deadline_ || killed_) return;
    killed_ = true;
    log_warning(fmt::format("rank {} {}; ending the others", rank,
                            signal != 0 ? fmt::format("was ended by signal {} ({})", signal, ::strsignal(signal))
                                        : fmt::format("failed with exit code {}", code)));
    deadline_ = Clock::now() + grace_;
    signal_all(SIGTERM);
  }

  ChildSignal signal_;
  std::vector<pid_t> children_;  // by rank; 0: has ended
  std::chrono::milliseconds grace_;
  std::optional<Clock::time_point> deadline_;
  bool stopping_ = false, killed_ = false;
  int code_ = 0;
};

}  // namespace

int run_children(int count, const std::vector<std::string>& arguments, const ChildrenOptions& options) {
  if (count < 1) throw UsageError(fmt::format("--nproc {}: expected a number above 0", count));
  const Descriptor memory(::memfd_create("cinch-store", MFD_CLOEXEC));
  // Inherited, and never a standard stream, even where those are closed.
  const Descriptor store(::fcntl(memory.get(), F_DUPFD, 3));
  if (memory.get() < 0 || store.get() < 0) refused("create a store in memory", errno);
  Launch launch;
  launch.world = count;
  launch.store_file = fmt::format("/proc/self/fd/{}", store.get());
  check_launchers(launch);
  const std::string program = options.program.empty() ? running_program() : options.program;
  std::vector<std::string> command = {program};
  command.insert(command.end(), arguments.begin(), arguments.end());
  const Strings argv(std::move(command));
  install_interrupt_handlers();
  Children children(options.grace);
  for (; launch.rank < count; ++launch.rank) children.start(program, argv, Strings(child_environment(launch)));
  return children.wait();
}

}  // namespace cinch
