#include "services/link/link_layers.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/status_macros.h"

namespace kvtier {
namespace {

// Ends what is under way and waits until nothing touches a buffer any more.
absl::Status Quiesce(Communicator& communicator, uint64_t last_group, absl::Status why) {
  communicator.Abort();
  communicator.Wait(last_group, absl::InfiniteFuture()).IgnoreError();
  return why;
}

bool HasBytes(const FetchPlan& plan, LayerIndex layer) {
  for (uint32_t band = 0; band < plan.band_count; ++band) {
    const SegmentEntry::ByteRange range = plan.bytes_of(BandIndex(band), layer);
    if (range.begin < range.end) return true;
  }
  return false;
}

absl::Status SendLayer(Communicator& communicator, const DeviceObject& object,
                       const FetchPlan& plan, LayerIndex layer, LinkMode mode, int to_rank) {
  for (uint32_t band = 0; band < plan.band_count; ++band) {
    const SegmentEntry::ByteRange range = plan.bytes_of(BandIndex(band), layer);
    if (range.begin == range.end) continue;
    auto* const from =
        static_cast<std::byte*>(object.segment(BandIndex(band), layer).data) + range.begin;
    const uint64_t bytes = range.end - range.begin;
    KVTIER_RETURN_IF_ERROR(mode == LinkMode::kBroadcast
                               ? communicator.Broadcast(from, bytes, /*root=*/0)
                               : communicator.Send(from, bytes, to_rank));
  }
  return absl::OkStatus();
}

// A layer under way.
struct Pending {
  LayerIndex layer;
  ReceivedLayer segments;
  uint64_t group = 0;  // 0: it has no bytes, so there is nothing to wait for.
};

absl::Status StartLayer(Communicator& communicator, const FetchPlan& plan, LinkMode mode,
                        Backend& backend, absl::Time deadline, Pending& pending) {
  pending.segments.resize(plan.band_count);
  if (!HasBytes(plan, pending.layer)) return absl::OkStatus();
  for (uint32_t band = 0; band < plan.band_count; ++band) {
    const SegmentEntry::ByteRange range = plan.bytes_of(BandIndex(band), pending.layer);
    if (range.begin == range.end) continue;
    const int64_t words = static_cast<int64_t>((range.end - range.begin) / sizeof(float));
    KVTIER_ASSIGN_OR_RETURN(pending.segments[band], backend.Allocate(DType::kF32, 1, words));
  }
  // The memory may be what an operation of the backend, which the communicator does not wait for,
  // has just let go of.
  KVTIER_RETURN_IF_ERROR(backend.Synchronize());
  KVTIER_RETURN_IF_ERROR(communicator.GroupStart());
  for (const Tensor& to : pending.segments) {
    if (to.bytes() == 0) continue;
    KVTIER_RETURN_IF_ERROR(mode == LinkMode::kBroadcast
                               ? communicator.Broadcast(to.data(), to.bytes(), /*root=*/0)
                               : communicator.Receive(to.data(), to.bytes(), /*from_rank=*/0));
  }
  KVTIER_ASSIGN_OR_RETURN(pending.group, communicator.GroupEnd(deadline));
  return absl::OkStatus();
}

}  // namespace

LinkMode ChooseLinkMode(const std::vector<FetchPlan>& plans) {
  const bool all_alike = std::all_of(plans.begin(), plans.end(), [&](const FetchPlan& plan) {
    return plan.heads == plans.front().heads;
  });
  return plans.size() > 1 && all_alike ? LinkMode::kBroadcast : LinkMode::kSend;
}

absl::Status SendLayers(Communicator& communicator, const DeviceObject& object,
                        const std::vector<FetchPlan>& plans, LinkMode mode, absl::Time deadline) {
  const size_t receivers = mode == LinkMode::kBroadcast ? 1 : plans.size();
  uint64_t last = 0;
  const auto run = [&]() -> absl::Status {
    const LayerRange layers = plans.front().layers;
    for (uint32_t layer = layers.begin; layer < layers.end; ++layer) {
      const bool any = std::any_of(plans.begin(), plans.end(), [&](const FetchPlan& plan) {
        return HasBytes(plan, LayerIndex(layer));
      });
      if (!any) continue;
      KVTIER_RETURN_IF_ERROR(communicator.GroupStart());
      for (size_t i = 0; i < receivers; ++i) {
        KVTIER_RETURN_IF_ERROR(SendLayer(communicator, object, plans[i], LayerIndex(layer), mode,
                                         static_cast<int>(i) + 1));
      }
      const uint64_t before = last;
      KVTIER_ASSIGN_OR_RETURN(last, communicator.GroupEnd(deadline));
      if (before != 0) KVTIER_RETURN_IF_ERROR(communicator.Wait(before, deadline));
    }
    return last == 0 ? absl::OkStatus() : communicator.Wait(last, deadline);
  };
  const absl::Status status = run();
  return status.ok() ? status : Quiesce(communicator, last, status);
}

absl::Status ReceiveLayers(Communicator& communicator, const FetchPlan& plan, LinkMode mode,
                           Backend& backend, absl::Time deadline,
                           const std::function<absl::Status(LayerIndex, ReceivedLayer)>& on_layer) {
  // Outside `run`: these buffers are freed only after the communicator lets go of them.
  std::optional<Pending> pending;
  Pending next;
  uint64_t last = 0;
  const auto hand_over = [&]() -> absl::Status {
    if (pending->group != 0) KVTIER_RETURN_IF_ERROR(communicator.Wait(pending->group, deadline));
    return on_layer(pending->layer, std::move(pending->segments));
  };
  const auto run = [&]() -> absl::Status {
    for (uint32_t layer = plan.layers.begin; layer < plan.layers.end; ++layer) {
      next = Pending{.layer = LayerIndex(layer), .segments = {}, .group = 0};
      const absl::Status started = StartLayer(communicator, plan, mode, backend, deadline, next);
      last = std::max(last, next.group);
      KVTIER_RETURN_IF_ERROR(started);
      if (pending.has_value()) KVTIER_RETURN_IF_ERROR(hand_over());
      pending = std::move(next);
    }
    return pending.has_value() ? hand_over() : absl::OkStatus();
  };
  const absl::Status status = run();
  return status.ok() ? status : Quiesce(communicator, last, status);
}

}  // namespace kvtier
