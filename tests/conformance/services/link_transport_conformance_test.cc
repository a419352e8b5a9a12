// The link as a Transport of its own, without a fallback: a worker with CPU memory, and one whose
// device the host cannot read.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "compressor/reference_backend.h"
#include "services/client.h"
#include "services/link/link_sender.h"
#include "services/link/link_service.h"
#include "services/link/link_transport.h"
#include "services/metrics.h"
#include "services/server.h"
#include "tests/conformance/transport_conformance.h"
#include "tests/testing/fake_communicator.h"
#include "tests/testing/fake_device_backend.h"
#include "tests/testing/local_server.h"
#include "tests/testing/store_checks.h"

namespace kvtier {
namespace {

// A store's object, copied to a device for one transfer.
class CopiedObject final : public DeviceObject {
 public:
  CopiedObject(std::shared_ptr<const Manifest> manifest, uint32_t bands)
      : manifest_(std::move(manifest)), bands_(bands) {}
  const std::shared_ptr<const Manifest>& manifest() const override { return manifest_; }
  uint32_t resident_bands() const override { return bands_; }
  TensorView segment(BandIndex band, LayerIndex layer) const override {
    return segments_[size_t{band.value()} * manifest_->geometry.layer_count() + layer.value()];
  }
  absl::Status Add(Backend& backend, const SegmentRef& bytes) {
    segments_.emplace_back();
    if (bytes.bytes().empty()) return absl::OkStatus();
    KVTIER_ASSIGN_OR_RETURN(
        segments_.back(),
        backend.Allocate(DType::kF32, 1, static_cast<int64_t>(bytes.bytes().size() / 4)));
    return backend.Upload(bytes.bytes(), segments_.back());
  }

 private:
  const std::shared_ptr<const Manifest> manifest_;
  const uint32_t bands_;
  std::vector<Tensor> segments_;
};

// Has in its device memory what the store has, so that a test's Put, Delete and DropBands count.
class StoreSource final : public DeviceObjectSource {
 public:
  StoreSource(TieredStore& store, Backend& backend) : store_(store), backend_(backend) {}
  absl::StatusOr<std::shared_ptr<const DeviceObject>> Pin(
      const TenantId& tenant, const Key& key, const std::optional<UploadId>& upload) override {
    KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<PinnedObject> pinned,
                            store_.Pin(tenant, key, upload));
    auto object = std::make_shared<CopiedObject>(pinned->manifest(), pinned->resident_bands());
    for (uint32_t band = 0; band < pinned->resident_bands(); ++band) {
      for (uint32_t layer = 0; layer < pinned->manifest()->geometry.layer_count(); ++layer) {
        KVTIER_ASSIGN_OR_RETURN(const SegmentRef bytes,
                                pinned->Read(BandIndex(band), LayerIndex(layer)));
        KVTIER_RETURN_IF_ERROR(object->Add(backend_, bytes));
      }
    }
    return object;
  }

 private:
  TieredStore& store_;
  Backend& backend_;
};

class LinkWorld final : public TransportWorld {
 public:
  explicit LinkWorld(std::unique_ptr<Backend> worker_device)
      : store_(*OpenTestStore("", uint64_t{256} << 20, Clock::Real())),
        worker_device_(std::move(worker_device)) {
    server_ = StartLocalServer({&service_}, metrics_);
    transport_ =
        MakeLinkTransport(ChannelTo(*server_), *worker_device_, worker_links_, /*fallback=*/nullptr,
                          counters_, Clock::Real(), {.timeout = absl::Minutes(1)});
  }
  ~LinkWorld() override { EXPECT_EQ(links_.uses_after_failure(), 0); }

  TieredStore& store() override { return *store_; }
  Transport& transport() override { return *transport_; }
  void DamageOnTheWay() override { sender_links_.Corrupt(); }
  void Stall() override {
    sender_links_.FailAt(2, FakeCommunicatorFactory::Fault::kHang);  // Making the communicator.
  }
  void Disconnect() override { server_.reset(); }

 private:
  FakeLinks links_{Clock::Real()};
  FakeCommunicatorFactory sender_links_{links_};
  FakeCommunicatorFactory worker_links_{links_};
  FakeDeviceBackend sender_device_{"sender:0"};
  const std::unique_ptr<TieredStore> store_;
  const std::unique_ptr<Backend> worker_device_;
  StoreSource source_{*store_, sender_device_};
  LinkCounters counters_;
  Metrics metrics_;
  LinkSender sender_{{}, source_, sender_links_, counters_, Clock::Real()};
  LinkService service_{{}, sender_, metrics_, Clock::Real()};
  std::unique_ptr<Server> server_;
  std::unique_ptr<Transport> transport_;
};

INSTANTIATE_TEST_SUITE_P(
    Link, TransportConformanceTest,
    testing::Values(TransportCase{"host_memory",
                                  [] {
                                    return std::make_unique<LinkWorld>(MakeReferenceBackend());
                                  }},
                    TransportCase{"device_memory",
                                  [] {
                                    return std::make_unique<LinkWorld>(
                                        std::make_unique<FakeDeviceBackend>("worker:0"));
                                  }}),
    [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace kvtier
