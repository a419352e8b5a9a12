// The whole way of an object that never leaves device memory: computed on a (played) GPU, stored,
// kept in the device tier, handed to a worker over the link. What arrives is what the store has.
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/status_matchers.h"
#include "compressor/device_tier.h"
#include "compressor/model.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/client.h"
#include "services/compressor_service.h"
#include "services/link/link_sender.h"
#include "services/link/link_service.h"
#include "services/link/link_transport.h"
#include "services/metrics.h"
#include "services/server.h"
#include "services/store_service.h"
#include "tests/testing/fake_communicator.h"
#include "tests/testing/fake_device_backend.h"
#include "tests/testing/local_server.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_model.h"

namespace kvtier {
namespace {

// Everything that a fetch brings.
class KeepingSink final : public SegmentSink {
 public:
  absl::Status OnManifest(std::shared_ptr<const Manifest> manifest, uint32_t band_count) override {
    upload = manifest->upload_id;
    bands = band_count;
    return absl::OkStatus();
  }
  absl::Status OnSegment(BandIndex band, LayerIndex layer, SegmentRef bytes) override {
    segments[{band, layer}].assign(bytes.bytes().begin(), bytes.bytes().end());
    return absl::OkStatus();
  }
  UploadId upload;
  uint32_t bands = 0;
  std::map<std::pair<BandIndex, LayerIndex>, std::vector<std::byte>> segments;
};

TEST(LinkPipelineTest, WhatWasCompressedOnADeviceComesOverTheLink) {
  TempDir dir;
  Metrics metrics;
  const std::unique_ptr<TieredStore> store = *OpenTestStore("", uint64_t{256} << 20, Clock::Real());
  const auto store_service = MakeStoreService({}, *store, metrics, Clock::Real());
  const auto store_server = StartLocalServer({store_service.get()}, metrics);

  // The compressor: a device, a model on it, a tier and the link's sending end.
  FakeDeviceBackend device("cuda:0");
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::string folder, WriteTinyModel({}, dir.File("tiny")));
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Model> model, Model::Load(folder, device));
  FakeLinks links(Clock::Real());
  FakeCommunicatorFactory sender_links(links), worker_links(links);
  LinkCounters sent, received;
  DeviceTier tier({.bytes_max = uint64_t{64} << 20}, device);
  LinkSender sender({}, tier, sender_links, sent, Clock::Real());
  LinkService link_service({}, sender, metrics, Clock::Real());
  StoreClient store_client(ChannelTo(*store_server));
  CompressorService::Options options;
  options.queue.memory_bytes_max = uint64_t{1} << 30;
  options.on_stored = [&](const CompressedObject& object) {
    KVTIER_EXPECT_OK(tier.Insert(TenantId(), object));
  };
  CompressorService compressor(options, {model.get()}, store_client, metrics, Clock::Real());
  const auto compressor_server = StartLocalServer({&compressor, &link_service}, metrics);

  CompressorClient client(ChannelTo(*compressor_server));
  v1::CompressRequest request;
  request.set_model(model->name());
  for (uint32_t i = 0; i < 200; ++i) request.add_token_ids(i * 7 % 250);
  const absl::Time soon = absl::Now() + absl::Minutes(2);
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::CompressResult result,
                              client.Compress(request, nullptr, soon));
  EXPECT_TRUE(result.computed());
  EXPECT_EQ(tier.usage().objects, 1u);

  // A worker with a device of its own, and nowhere to fall back to.
  FakeDeviceBackend worker_device("cuda:1");
  const auto link = MakeLinkTransport(ChannelTo(*compressor_server), worker_device, worker_links,
                                      /*fallback=*/nullptr, received, Clock::Real(), {});
  FetchRequest fetch;
  fetch.key = *Key::FromBytes(absl::string_view(result.object().name().key()));
  fetch.upload_id = *UploadId::FromBytes(absl::string_view(result.object().name().upload_id()));
  for (const double ratio : {0.1, 0.3, 1.0}) {
    SCOPED_TRACE(ratio);
    fetch.ratio = fetch.min_ratio = *Ratio::FromDouble(ratio);
    KeepingSink by_link, by_store;
    KVTIER_ASSERT_OK(link->Fetch(fetch, soon, by_link));
    KVTIER_ASSERT_OK(MakeGrpcTransport(ChannelTo(*store_server))->Fetch(fetch, soon, by_store));
    EXPECT_EQ(by_link.upload, by_store.upload);
    EXPECT_EQ(by_link.bands, by_store.bands);
    EXPECT_EQ(by_link.segments, by_store.segments);
  }
  EXPECT_EQ(sent.sent, 3u);
  EXPECT_EQ(received.received, 3u);
  EXPECT_EQ(links.groups_made(), 1);

  // The same context again is answered from the store and changes nothing here.
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::CompressResult again,
                              client.Compress(request, nullptr, soon));
  EXPECT_FALSE(again.computed());
  EXPECT_EQ(tier.usage().inserted, 1u);

  // With the store to ask, the link brings what that has, and not what was deleted there.
  const auto store_transport = MakeGrpcTransport(ChannelTo(*store_server));
  const auto with_store =
      MakeLinkTransport(ChannelTo(*compressor_server), worker_device, worker_links,
                        store_transport.get(), received, Clock::Real(), {});
  fetch.upload_id = std::nullopt;
  KeepingSink there, deleted;
  KVTIER_ASSERT_OK(with_store->Fetch(fetch, soon, there));
  EXPECT_EQ(sent.sent, 4u);
  EXPECT_EQ(received.received, 4u);
  KVTIER_ASSERT_OK(store_client.Delete(fetch.key, 0, soon));
  EXPECT_EQ(tier.usage().objects, 1u) << "the copy is not told";
  EXPECT_THAT(with_store->Fetch(fetch, soon, deleted), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_EQ(deleted.bands, 0u);
}

}  // namespace
}  // namespace kvtier
