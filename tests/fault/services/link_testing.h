// What the tests of the link share: a sender behind a real socket, workers, and a store to fall
// back to. Everything but gRPC's own time-outs runs on the clock that a test passes.
#ifndef KVTIER_TESTS_FAULT_SERVICES_LINK_TESTING_H_
#define KVTIER_TESTS_FAULT_SERVICES_LINK_TESTING_H_

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/status_macros.h"
#include "base/status_matchers.h"
#include "compressor/device_tier.h"
#include "gtest/gtest.h"
#include "services/client.h"
#include "services/fetch_plan.h"
#include "services/link/link_sender.h"
#include "services/link/link_service.h"
#include "services/link/link_transport.h"
#include "services/metrics.h"
#include "services/server.h"
#include "tests/testing/fake_communicator.h"
#include "tests/testing/fake_device_backend.h"
#include "tests/testing/local_server.h"
#include "tests/testing/test_object.h"

namespace kvtier {

// A store of one object, without a wire. Counts the fetches that wanted more than the manifest.
class ObjectTransport final : public Transport {
 public:
  explicit ObjectTransport(const CompressedObject& object)
      : object_(object), bands_(static_cast<uint32_t>(object.manifest->bands.size())) {}

  // Another number of bands than the object has.
  void KeepBands(uint32_t bands) { bands_ = bands; }
  void Delete() { is_deleted_ = true; }
  int fetches() const { return fetches_.load(); }

  absl::Status Fetch(const FetchRequest& request, absl::Time /*deadline*/,
                     SegmentSink& sink) override {
    if (is_deleted_ || request.key != object_.manifest->key) return absl::NotFoundError("");
    if (request.upload_id.has_value() && *request.upload_id != object_.manifest->upload_id) {
      return absl::AbortedError("another upload");
    }
    KVTIER_ASSIGN_OR_RETURN(const FetchPlan plan, PlanFetch(object_.manifest, bands_, request));
    KVTIER_RETURN_IF_ERROR(sink.OnManifest(plan.manifest, plan.band_count));
    ++fetches_;
    for (uint32_t layer = plan.layers.begin; layer < plan.layers.end; ++layer) {
      for (uint32_t band = 0; band < plan.band_count; ++band) {
        const SegmentRef& segment = object_.segment(BandIndex(band), LayerIndex(layer));
        const SegmentEntry::ByteRange range = plan.bytes_of(BandIndex(band), LayerIndex(layer));
        KVTIER_RETURN_IF_ERROR(sink.OnSegment(
            BandIndex(band), LayerIndex(layer),
            SegmentRef(segment.owner(),
                       segment.bytes().subspan(range.begin, range.end - range.begin))));
      }
    }
    return absl::OkStatus();
  }

 private:
  const CompressedObject& object_;
  uint32_t bands_;
  std::atomic<bool> is_deleted_{false};
  std::atomic<int> fetches_{0};
};

// Holds what came against the object: each segment once, in order, byte for byte.
class CheckingSink final : public SegmentSink {
 public:
  CheckingSink(const CompressedObject& object, HeadRange heads) : object_(object), heads_(heads) {}

  absl::Status OnManifest(std::shared_ptr<const Manifest> manifest, uint32_t band_count) override {
    EXPECT_EQ(band_count_, 0u) << "OnManifest comes once";
    EXPECT_EQ(*manifest, *object_.manifest);
    band_count_ = band_count;
    return absl::OkStatus();
  }
  absl::Status OnSegment(BandIndex band, LayerIndex layer, SegmentRef bytes) override {
    if (on_segment != nullptr) KVTIER_RETURN_IF_ERROR(on_segment(band, layer));
    EXPECT_EQ(layer.value() * band_count_ + band.value(), segments_) << "order";
    ++segments_;
    const SegmentEntry::ByteRange range = object_.manifest->segment(band, layer).HeadBytes(heads_);
    EXPECT_TRUE(std::ranges::equal(
        bytes.bytes(),
        object_.segment(band, layer).bytes().subspan(range.begin, range.end - range.begin)))
        << "band " << band.value() << " layer " << layer.value();
    return absl::OkStatus();
  }
  // Everything has come.
  void ExpectWhole() const {
    EXPECT_EQ(band_count_, object_.manifest->bands.size());
    EXPECT_EQ(segments_, band_count_ * object_.manifest->geometry.layer_count());
  }
  uint32_t segments() const { return segments_; }

  std::function<absl::Status(BandIndex, LayerIndex)> on_segment;

 private:
  const CompressedObject& object_;
  const HeadRange heads_;
  uint32_t band_count_ = 0;
  uint32_t segments_ = 0;
};

// A compressor's end: objects in a tier of a fake GPU, served on a port.
class LinkSenderWorld {
 public:
  LinkSenderWorld(FakeLinks& links, Clock& clock, LinkService::Options options = {},
                  const LinkSender::Options& sender_options = {})
      : communicators(links),
        tier({.bytes_max = uint64_t{256} << 20}, device),
        sender(sender_options, tier, communicators, counters, clock),
        service(options, sender, metrics, clock) {
    server = StartLocalServer({&service}, metrics);
  }

  std::shared_ptr<grpc::Channel> Connect() const { return ChannelTo(*server); }

  FakeCommunicatorFactory communicators;
  FakeDeviceBackend device{"sender:0"};
  DeviceTier tier;
  LinkCounters counters;
  Metrics metrics;
  LinkSender sender;
  LinkService service;
  std::unique_ptr<Server> server;
};

// One rank, with an object's store behind it.
class LinkWorkerWorld {
 public:
  LinkWorkerWorld(FakeLinks& links, Clock& clock, std::shared_ptr<grpc::Channel> channel,
                  const CompressedObject& object, const LinkTransportOptions& options = {})
      : communicators(links),
        store(object),
        transport(MakeLinkTransport(std::move(channel), device, communicators, &store, counters,
                                    clock, options)) {}

  FakeCommunicatorFactory communicators;
  FakeDeviceBackend device{"worker:0"};
  LinkCounters counters;
  ObjectTransport store;
  std::unique_ptr<Transport> transport;
};

inline FetchRequest WholeObject(const CompressedObject& object,
                                std::optional<HeadRange> heads = std::nullopt) {
  FetchRequest request;
  request.key = object.manifest->key;
  request.min_ratio = *Ratio::FromDouble(0.1);
  request.heads = heads;
  return request;
}

}  // namespace kvtier

#endif  // KVTIER_TESTS_FAULT_SERVICES_LINK_TESTING_H_
