// The error types of cinch. A fault that a user can cause is thrown as one of these; each names the object (file,
// tensor, JSON path, flag), the rule, the value seen, and where possible a way out. Boundaries add context once with
// `with_context`; `describe_error` unrolls the chain.
#pragma once

#include <exception>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace cinch {

/// Exit codes of the program (docs/errors.md).
enum class ExitCode : int {
  done = 0,
  failed = 1,        // failed at run time
  usage = 2,         // bad usage or recipe
  bad_input = 3,     // bad input file
  unsupported = 4,   // the target cannot represent this model
  verification = 5,  // what was written is not what was meant
  resources = 6,     // not enough memory or disk
  interrupted = 130  // Ctrl-C or SIGTERM; resumable
};

class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message, std::string help = {}, ExitCode exit_code = ExitCode::failed)
      : std::runtime_error(message), help_(std::move(help)), exit_code_(exit_code) {}

  const std::string& help() const { return help_; }
  ExitCode exit_code() const { return exit_code_; }

 private:
  std::string help_;
  ExitCode exit_code_;
};

/// A bad flag, argument or recipe key.
struct UsageError : Error {
  explicit UsageError(const std::string& message, std::string help = {})
      : Error(message, std::move(help), ExitCode::usage) {}
};

/// A bad config.json, tokenizer.json or other side file.
struct ConfigError : Error {
  explicit ConfigError(const std::string& message, std::string help = {})
      : Error(message, std::move(help), ExitCode::bad_input) {}
};

/// A bad tensor file: header, lengths, digests, missing tensors.
struct CheckpointError : Error {
  explicit CheckpointError(const std::string& message, std::string help = {})
      : Error(message, std::move(help), ExitCode::bad_input) {}
};

/// A tensor whose shape is not the one that the config promises.
struct ShapeError : Error {
  explicit ShapeError(const std::string& message, std::string help = {})
      : Error(message, std::move(help), ExitCode::bad_input) {}
};

/// A model, component or target that cinch or the chosen runtime cannot represent.
struct UnsupportedError : Error {
  explicit UnsupportedError(const std::string& message, std::string help = {})
      : Error(message, std::move(help), ExitCode::unsupported) {}
};

/// What was written differs from what was meant.
struct VerificationError : Error {
  explicit VerificationError(const std::string& message, std::string help = {})
      : Error(message, std::move(help), ExitCode::verification) {}
};

/// Out of memory, disk or file handles.
struct ResourceError : Error {
  explicit ResourceError(const std::string& message, std::string help = {})
      : Error(message, std::move(help), ExitCode::resources) {}
};

/// The user asked to stop; the work can be resumed.
struct InterruptedError : Error {
  explicit InterruptedError(const std::string& message, std::string help = {})
      : Error(message, std::move(help), ExitCode::interrupted) {}
};

/// A line of context around an inner error; takes its exit code from the inner one.
struct ContextError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Runs `body`; an exception that leaves it is nested under "while <context>".
template <typename Body>
decltype(auto) with_context(const std::string& context, Body&& body) {
  try {
    return std::forward<Body>(body)();
  } catch (const std::exception&) {
    std::throw_with_nested(ContextError(context));
  }
}

struct ErrorReport {
  std::vector<std::string> lines;  // the fault first, then its context from the inside out
  std::string help;                // of the innermost error that has one, else empty
  ExitCode exit_code = ExitCode::failed;
};

/// Unrolls a chain of nested exceptions. std::bad_alloc counts as ResourceError.
ErrorReport describe_error(const std::exception& error);

}  // namespace cinch
