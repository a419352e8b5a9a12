#include "cuda/thread_capture.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace kvtier::thread_capture {
namespace {

struct Capture {
  const Device* device = nullptr;
  DeviceStream stream = nullptr;
  absl::Status spoiled;
};

Capture& Current() {
  thread_local Capture capture;
  return capture;
}

}  // namespace

absl::Status Begin(const Device& device, DeviceStream stream) {
  Capture& capture = Current();
  if (capture.device != nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(
        device.name(), ": this thread is in a capture on ", capture.device->name(), " already"));
  }
  capture = {.device = &device, .stream = stream, .spoiled = absl::OkStatus()};
  return absl::OkStatus();
}

DeviceStream StreamOr(const Device& device, DeviceStream otherwise) {
  const Capture& capture = Current();
  return capture.device == &device ? capture.stream : otherwise;
}

absl::Status Refuse(const Device& device, absl::string_view what) {
  Capture& capture = Current();
  if (capture.device != &device) return absl::OkStatus();
  absl::Status refused = absl::FailedPreconditionError(
      absl::StrCat(device.name(), ": ", what, ": not in a capture, which only keeps launches"));
  capture.spoiled.Update(refused);
  return refused;
}

absl::Status End(const Device& device) {
  Capture& capture = Current();
  if (capture.device != &device) {
    return absl::FailedPreconditionError(
        absl::StrCat(device.name(), ": this thread is in no capture"));
  }
  return std::exchange(capture, Capture()).spoiled;
}

}  // namespace kvtier::thread_capture
