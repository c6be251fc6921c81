// The processes that train one model together, and what they do with each other's tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace cinch {

/// Where the processes of a run meet.
struct Rendezvous {
  int rank = 0, world = 1;
  /// A file that all of them reach and that does not exist before; else a TCP store at host:port.
  std::string file;
  std::string host;
  int port = 0;
  bool hosts_store = false;  // this process runs the TCP store
  std::string prefix;        // of keys in the store, which a launcher may share between attempts
  std::string interface;     // network interface or host name that this process is reached by; empty: found out
  std::chrono::seconds timeout{600};
};

class ProcessGroup {
 public:
  /// Blocks until an operation that was started is done.
  using Finish = std::function<void()>;

  virtual ~ProcessGroup() = default;
  virtual int rank() const = 0;
  virtual int world() const = 0;
  virtual std::string backend() const = 0;  // "none", "gloo", "nccl"

  /// Each of the following is started by all processes in the same order; tensors stay alive until it has finished.
  /// Sum over the processes, in place.
  virtual Finish all_reduce(const at::Tensor& tensor) = 0;
  /// whole: world equal parts; part r of the sum goes to process r.
  virtual Finish reduce_scatter(const at::Tensor& share, const at::Tensor& whole) = 0;
  /// The shares, in the order of the processes; `share` may be its own place in `whole`.
  virtual Finish all_gather(const at::Tensor& whole, const at::Tensor& share) = 0;
  virtual void barrier() = 0;

  /// Sums and largest values of a few numbers of the host.
  virtual void sum(std::vector<double>& values) = 0;
  virtual void largest(std::vector<double>& values) = 0;

  bool first() const { return rank() == 0; }
};

/// One process.
std::shared_ptr<ProcessGroup> single_process();

/// Meets the others. Throws ResourceError when they do not come in time, naming where they were awaited.
std::shared_ptr<ProcessGroup> join_processes(const Rendezvous& rendezvous, at::Device device);

}  // namespace cinch
