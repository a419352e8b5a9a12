// Rows of activations to and from the host, whatever element type the backend computes in.
// Plain functions: any thread may call.
#ifndef KVTIER_COMPRESSOR_ACTIVATIONS_H_
#define KVTIER_COMPRESSOR_ACTIVATIONS_H_

#include <span>

#include "absl/status/status.h"
#include "compressor/backend.h"

namespace kvtier {

// Waits for what is enqueued. Errors as Backend::Download: `to` holds exactly the view's elements.
absl::Status DownloadFloats(Backend& backend, TensorView from, std::span<float> to);

// Rounds to the view's element type, to nearest even. Errors as Backend::Upload.
absl::Status UploadFloats(Backend& backend, std::span<const float> from, TensorView to);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_ACTIVATIONS_H_
