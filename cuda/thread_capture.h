// Which capture the calling thread is in: what a Device asks before it does what a capture forbids,
// the same for a GPU and the emulated device. State of the thread; needs no lock.
#ifndef KVTIER_CUDA_THREAD_CAPTURE_H_
#define KVTIER_CUDA_THREAD_CAPTURE_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "cuda/device.h"

namespace kvtier::thread_capture {

// From now on this thread captures on `device`, launching to `stream`.
// FAILED_PRECONDITION: it is in a capture already.
absl::Status Begin(const Device& device, DeviceStream stream);

// The stream of the capture; `otherwise` outside of one on this device.
DeviceStream StreamOr(const Device& device, DeviceStream otherwise);

// OK outside of a capture on `device`. Inside: FAILED_PRECONDITION naming `what`, and the capture
// is spoiled: End() will say the same.
absl::Status Refuse(const Device& device, absl::string_view what);

// Ends it. FAILED_PRECONDITION: this thread captures nothing on `device`, or the capture is
// spoiled, by what came first.
absl::Status End(const Device& device);

}  // namespace kvtier::thread_capture

#endif  // KVTIER_CUDA_THREAD_CAPTURE_H_
