// Which device a program computes on: what --device asks for, and what it gets.
//
//   KVTIER_ASSIGN_OR_RETURN(DeviceChoice choice, DeviceChoice::Parse("auto"));
//   KVTIER_ASSIGN_OR_RETURN(ComputeDevice device, OpenComputeDevice(choice, backends));
//
// A program that was asked for a GPU and cannot have one, because the GPU, its driver or cuBLASLt
// is missing or too old, says so and computes on the CPU: a node whose driver is not up yet serves
// slowly instead of not at all. What can never be had, a GPU from a build without CUDA, is an
// error; so is a GPU that is there and does not start. Plain functions: thread-safe.
#ifndef KVTIER_SERVICES_COMPUTE_DEVICE_H_
#define KVTIER_SERVICES_COMPUTE_DEVICE_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compressor/backend.h"

namespace kvtier {

struct DeviceChoice {
  enum class Kind { kCpu, kCuda, kAuto };
  Kind kind = Kind::kAuto;
  int ordinal = 0;  // Of kCuda; kAuto tries 0.

  // "cpu", "auto", "cuda:N" with N in [0, 1023]. INVALID_ARGUMENT naming the text otherwise.
  static absl::StatusOr<DeviceChoice> Parse(absl::string_view text);
  std::string ToString() const;
  friend bool operator==(const DeviceChoice&, const DeviceChoice&) = default;
};

// How backends are made. Programs pass services/machine_devices.h, tests their own.
struct DeviceBackends {
  // Errors are final.
  std::function<absl::StatusOr<std::unique_ptr<Backend>>()> cpu;
  // Null: this build has no CUDA.
  //   UNAVAILABLE, FAILED_PRECONDITION, NOT_FOUND  no device, driver or cuBLASLt, or one too old
  //   anything else                                a device that cannot be used
  std::function<absl::StatusOr<std::unique_ptr<Backend>>(int ordinal)> cuda;
};

// A program without GPUs. `threads` work on one operation of the CPU backend; 0: one per core.
// Opening it with a negative number is INVALID_ARGUMENT.
DeviceBackends CpuDevices(int threads);

struct ComputeDevice {
  std::unique_ptr<Backend> backend;
  std::string fallback_reason;  // Why not the GPU; empty if it is what was asked for.
};

// kAuto takes the first GPU, else the CPU, whatever the reason. kCuda takes that GPU; where this
// machine has none that will do it takes the CPU.
//   INVALID_ARGUMENT  kCuda, but the build has no CUDA; kCpu where it cannot be had as asked
//   what `cuda` says of a device that cannot be used, for kCuda
// REQUIRES: backends.cpu.
absl::StatusOr<ComputeDevice> OpenComputeDevice(const DeviceChoice& choice,
                                                const DeviceBackends& backends);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_COMPUTE_DEVICE_H_
