// The payload of a link transfer: a fetch plan as operations of a communicator. One group of
// operations per layer, one operation per band whose asked heads have bytes; both ends derive them
// from the manifest, so they agree without saying so. Two layers are under way at once, so that
// the device moves one while the other is handed over.
//
// On any error the communicator has been aborted, and no buffer is touched any more.
// Plain functions: thread-safe for different communicators.
#ifndef KVTIER_SERVICES_LINK_LINK_LAYERS_H_
#define KVTIER_SERVICES_LINK_LINK_LAYERS_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "compressor/backend.h"
#include "compressor/device_tier.h"
#include "kvcache/communicator.h"
#include "services/fetch_plan.h"

namespace kvtier {

enum class LinkMode { kSend, kBroadcast };

// How to serve these plans, one per worker: a broadcast if several want the same heads.
// REQUIRES: at least one plan.
LinkMode ChooseLinkMode(const std::vector<FetchPlan>& plans);

// As rank 0: plan i to rank i + 1. All plans are of one object and differ in their heads alone.
// Errors as Communicator.
absl::Status SendLayers(Communicator& communicator, const DeviceObject& object,
                        const std::vector<FetchPlan>& plans, LinkMode mode, absl::Time deadline);

// The segments of one layer, as they arrived: [band_count], no data where the asked heads have no
// bytes; else [1, bytes / 4] of fp32 in memory of the backend.
using ReceivedLayer = std::vector<Tensor>;

// As another rank, from rank 0. `on_layer` gets each layer as soon as it is there, in order, on
// this thread, while the next one is under way; its error ends the transfer.
//   RESOURCE_EXHAUSTED  no device memory for a layer
//   whatever `on_layer` returns, or the communicator
absl::Status ReceiveLayers(Communicator& communicator, const FetchPlan& plan, LinkMode mode,
                           Backend& backend, absl::Time deadline,
                           const std::function<absl::Status(LayerIndex, ReceivedLayer)>& on_layer);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_LINK_LINK_LAYERS_H_
