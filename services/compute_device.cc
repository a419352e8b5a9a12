#include "services/compute_device.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/status_macros.h"
#include "compressor/cpu_backend.h"

namespace kvtier {
namespace {

// More GPUs than any machine has; keeps a mistyped number out of the runtime.
constexpr int kOrdinalMax = 1023;

bool IsMissingDevice(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsFailedPrecondition(status) ||
         absl::IsNotFound(status);
}

}  // namespace

absl::StatusOr<DeviceChoice> DeviceChoice::Parse(absl::string_view text) {
  if (text == "cpu") return DeviceChoice{Kind::kCpu, 0};
  if (text == "auto") return DeviceChoice{Kind::kAuto, 0};
  absl::string_view number = text;
  int ordinal = 0;
  // A digit first: SimpleAtoi would also take blanks and signs.
  if (absl::ConsumePrefix(&number, "cuda:") && !number.empty() && absl::ascii_isdigit(number[0]) &&
      absl::SimpleAtoi(number, &ordinal) && ordinal <= kOrdinalMax) {
    return DeviceChoice{Kind::kCuda, ordinal};
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--device ", text, " is unknown; use cpu, cuda:N or auto"));
}

std::string DeviceChoice::ToString() const {
  switch (kind) {
    case Kind::kCpu:
      return "cpu";
    case Kind::kCuda:
      return absl::StrCat("cuda:", ordinal);
    case Kind::kAuto:
      return "auto";
  }
  return "unknown";
}

DeviceBackends CpuDevices(int threads) {
  DeviceBackends backends;
  backends.cpu = [threads]() -> absl::StatusOr<std::unique_ptr<Backend>> {
    if (threads < 0) return absl::InvalidArgumentError(absl::StrCat("--threads is ", threads));
    return MakeCpuBackend({.threads = threads});
  };
  return backends;
}

absl::StatusOr<ComputeDevice> OpenComputeDevice(const DeviceChoice& choice,
                                                const DeviceBackends& backends) {
  ComputeDevice device;
  if (choice.kind != DeviceChoice::Kind::kCpu) {
    if (backends.cuda == nullptr) {
      if (choice.kind == DeviceChoice::Kind::kCuda) {
        return absl::InvalidArgumentError(absl::StrCat(
            "--device ", choice.ToString(), ": this build has no CUDA backend; use cpu or auto"));
      }
      device.fallback_reason = "this build has no CUDA backend";
    } else {
      absl::StatusOr<std::unique_ptr<Backend>> gpu = backends.cuda(choice.ordinal);
      if (gpu.ok()) {
        device.backend = *std::move(gpu);
        return device;
      }
      const absl::Status& why = gpu.status();
      if (choice.kind == DeviceChoice::Kind::kCuda && !IsMissingDevice(why)) {
        return absl::Status(why.code(),
                            absl::StrCat("--device ", choice.ToString(), ": ", why.message()));
      }
      device.fallback_reason = std::string(why.message());
      if (device.fallback_reason.empty()) device.fallback_reason = why.ToString();
    }
  }
  KVTIER_ASSIGN_OR_RETURN(device.backend, backends.cpu());
  return device;
}

}  // namespace kvtier
