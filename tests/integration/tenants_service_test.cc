// What store.proto promises of attributes, bulk deletion, quotas and Watch, through real gRPC.
#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvtier/v1/store.grpc.pb.h"
#include "services/client.h"
#include "services/metrics.h"
#include "services/server.h"
#include "services/status_grpc.h"
#include "services/store_service.h"
#include "tests/testing/local_server.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;

absl::Time Soon() { return absl::Now() + absl::Seconds(50); }

class TenantsServiceTest : public testing::Test {
 protected:
  void Open(const TieredStoreOptions& options = {}, const StoreServiceOptions& service = {}) {
    store_ = *TieredStore::Create(options, nullptr, Clock::Real());
    metrics_ = std::make_unique<Metrics>();
    service_ = MakeStoreService(service, *store_, *metrics_, Clock::Real());
    server_ = StartLocalServer({service_.get()}, *metrics_);
    channel_ = ChannelTo(*server_);
    client_ = std::make_unique<StoreClient>(channel_);
    other_ = std::make_unique<StoreClient>(channel_, *TenantId::FromString("other"));
  }
  static CompressedObject Object(uint64_t seed) { return MakeTestObject({.seed = seed}); }
  static absl::Status Put(StoreClient& client, const CompressedObject& object,
                          absl::Duration ttl = absl::InfiniteDuration()) {
    return client
        .Put(object, v1::DURABILITY_HOST, nullptr, CancelToken(), Soon(), std::nullopt, ttl)
        .status();
  }
  absl::Status SetPinned(const CompressedObject& object, bool pinned) {
    return client_->SetAttributes(object.manifest->key, {.pinned = pinned}, Soon()).status();
  }

  std::unique_ptr<TieredStore> store_;
  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<grpc::Service> service_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<StoreClient> client_, other_;
};

TEST_F(TenantsServiceTest, CallsOfOneTenantLeaveSlotsForOthers) {
  Open({}, {.calls_max = 4});
  // Watches that go on: the tenant's share, and then one too many.
  std::vector<std::thread> watches;
  std::atomic<int> seen{0};
  grpc::ClientContext* contexts[2];
  std::vector<std::unique_ptr<grpc::ClientContext>> owned;
  const auto stub = v1::StoreService::NewStub(channel_);
  for (grpc::ClientContext*& context : contexts) {
    context = owned.emplace_back(std::make_unique<grpc::ClientContext>()).get();
    watches.emplace_back([&stub, &seen, context] {
      const auto stream = stub->Watch(context, v1::WatchRequest());
      v1::WatchResponse response;
      while (stream->Read(&response)) ++seen;
      stream->Finish();
    });
  }
  while (seen < 2) std::this_thread::yield();
  const absl::Status refused = client_->Stats(Soon()).status();
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kResourceExhausted,
                                HasSubstr("tenant default has 2 calls running")));
  EXPECT_TRUE(RetryAfter(refused).has_value());
  EXPECT_EQ(metrics_->calls_refused_share.Value(), 1);
  KVTIER_EXPECT_OK(other_->Stats(Soon()));
  for (grpc::ClientContext* context : contexts) context->TryCancel();
  for (std::thread& watch : watches) watch.join();
  absl::Status again;
  do {
    again = client_->Stats(Soon()).status();
  } while (absl::IsResourceExhausted(again));
  KVTIER_EXPECT_OK(again);
}

TEST_F(TenantsServiceTest, AttributesAreSetAndSeen) {
  Open();
  const CompressedObject object = Object(1);
  KVTIER_ASSERT_OK(Put(*client_, object, absl::Hours(1)));
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto put, client_->GetObject(object.manifest->key, Soon()));
  EXPECT_FALSE(put.object().pinned());
  EXPECT_EQ(put.object().expires_unix_ms() - put.object().sealed_unix_ms(), 3'600'000);

  KVTIER_ASSERT_OK_AND_ASSIGN(
      const v1::ObjectSummary set,
      client_->SetAttributes(object.manifest->key,
                             {.pinned = true, .ttl = absl::InfiniteDuration()}, Soon()));
  EXPECT_TRUE(set.pinned());
  EXPECT_EQ(set.expires_unix_ms(), 0);
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::ListResponse list, client_->List("", 0, Soon()));
  EXPECT_TRUE(list.objects(0).pinned());
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::StatsResponse stats, client_->Stats(Soon()));
  EXPECT_EQ(stats.tenant().objects(), 1u);
  EXPECT_EQ(stats.tenant().pinned_bytes(), object.manifest->total_bytes());
  EXPECT_EQ(stats.limits().watchers_max(), limits::kWatchersMax);

  EXPECT_THAT(other_->SetAttributes(object.manifest->key, {.pinned = false}, Soon()),
              StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(client_->SetAttributes(object.manifest->key, {}, Soon()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("nothing to change")));
  EXPECT_THAT(client_->SetAttributes(object.manifest->key, {.ttl = 2 * limits::kTtlMax}, Soon()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("ttl_ms")));
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::StatsResponse none, other_->Stats(Soon()));
  EXPECT_EQ(none.tenant().objects(), 0u);
}

TEST_F(TenantsServiceTest, AUsedUpQuotaIsNamedAndSaysWhenToTryAgainIfThatHelps) {
  const CompressedObject one = Object(1);
  TieredStoreOptions options;
  options.tenant_quotas.default_bytes = one.manifest->total_bytes() * 5 / 4;
  Open(options);
  KVTIER_ASSERT_OK(Put(*client_, one));
  // Half of the quota may be pinned, and that is less than the object.
  const absl::Status pinned = SetPinned(one, true);
  EXPECT_THAT(pinned, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("pinned")));
  EXPECT_FALSE(RetryAfter(pinned).has_value());
  const CompressedObject large = MakeTestObject({.context_tokens = 600, .seed = 2});
  const absl::Status refused = Put(*client_, large);
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("its quota of")));
  EXPECT_FALSE(RetryAfter(refused).has_value());
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto reader,
                                store_->Pin(TenantId(), one.manifest->key, std::nullopt));
    const absl::Status read = Put(*client_, Object(3));
    EXPECT_THAT(read, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("its quota of")));
    EXPECT_TRUE(RetryAfter(read).has_value()) << "the reader will be done";
  }
  options.tenant_quotas.default_bytes = one.manifest->total_bytes() * 3;  // Pins: one and a half.
  Open(options);
  for (const uint64_t seed : {1, 3}) KVTIER_ASSERT_OK(Put(*client_, Object(seed)));
  KVTIER_ASSERT_OK(SetPinned(one, true));
  const absl::Status second = SetPinned(Object(3), true);
  EXPECT_THAT(second, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("pinned")));
  EXPECT_TRUE(RetryAfter(second).has_value()) << "the first may be unpinned";
  KVTIER_ASSERT_OK(SetPinned(one, false));
  KVTIER_EXPECT_OK(SetPinned(Object(3), true));
}

TEST_F(TenantsServiceTest, AUsedUpQuotaCostsItsTenantAlone) {
  const CompressedObject one = Object(1);
  TieredStoreOptions options;
  options.tenant_quotas.default_bytes = one.manifest->total_bytes() * 5 / 4;
  Open(options);
  KVTIER_ASSERT_OK(Put(*client_, one));
  const CompressedObject others = MakeTestObject({.seed = 1, .upload_seed = 99});
  KVTIER_EXPECT_OK(Put(*other_, others));
  KVTIER_EXPECT_OK(Put(*client_, Object(3)));  // The first one gives way.
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::StatsResponse stats, client_->Stats(Soon()));
  EXPECT_EQ(stats.tenant().quota_bytes(), options.tenant_quotas.default_bytes);
  EXPECT_LE(stats.tenant().bytes(), stats.tenant().quota_bytes());
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto found, other_->GetObject(others.manifest->key, Soon()));
  EXPECT_EQ(found.object().resident_bands(), others.manifest->bands.size());
}

TEST_F(TenantsServiceTest, DeleteManyRemovesATenantsObjectsOrThoseOfAModel) {
  Open();
  constexpr uint64_t kObjects = 300;  // More than a page.
  uint64_t bytes = 0;
  for (uint64_t seed = 0; seed < kObjects; ++seed) {
    const CompressedObject object =
        MakeTestObject({.layers = 1, .context_tokens = 12, .edges = "1", .seed = seed});
    bytes += object.manifest->total_bytes();
    KVTIER_ASSERT_OK(store_->Put(TenantId(), object, Durability::kHost));
  }
  KVTIER_ASSERT_OK(Put(*other_, MakeTestObject({.seed = 1, .upload_seed = 99})));
  v1::DeleteManyRequest request;
  EXPECT_THAT(client_->DeleteMany(request, nullptr, Soon()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("say which")));
  request.set_model_digest("short");
  EXPECT_THAT(client_->DeleteMany(request, nullptr, Soon()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("5 bytes, not 32")));
  request.set_model_digest(std::string(32, 'x'));
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto none, client_->DeleteMany(request, nullptr, Soon()));
  EXPECT_EQ(none.objects(), 0u);

  const std::string digest(Object(1).manifest->model_digest.AsStringView());
  request.set_model_digest(digest);
  request.set_dry_run(true);
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto dry, client_->DeleteMany(request, nullptr, Soon()));
  EXPECT_EQ(dry.objects(), kObjects);
  EXPECT_EQ(dry.bytes(), bytes);
  EXPECT_EQ(store_->object_count(), kObjects + 1);

  request.set_dry_run(false);
  std::vector<uint64_t> progress;
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto total, client_->DeleteMany(
                                                    request,
                                                    [&](const v1::DeleteManyResponse& response) {
                                                      progress.push_back(response.objects());
                                                    },
                                                    Soon()));
  EXPECT_EQ(total.objects(), kObjects);
  EXPECT_EQ(total.bytes(), bytes);
  EXPECT_GT(progress.size(), 1u);
  EXPECT_TRUE(std::is_sorted(progress.begin(), progress.end()));
  EXPECT_EQ(store_->object_count(), 1u);  // The other tenant's.
  EXPECT_EQ(metrics_->store_bulk_deleted_objects.Value(), kObjects);
  request.set_all(true);
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto all, other_->DeleteMany(request, nullptr, Soon()));
  EXPECT_EQ(all.objects(), 1u);
}

// Reads a Watch on a thread of its own.
class WatchThread {
 public:
  WatchThread(StoreClient& client, v1::WatchRequest request) {
    thread_ = std::thread([this, &client, request = std::move(request)] {
      const absl::Status status =
          client.Watch(request, Soon(), [this](const v1::WatchResponse& response) {
            MutexLock lock(&mutex_);
            messages_.push_back(response);
            changed_.SignalAll();
            return !is_stopping_;
          });
      MutexLock lock(&mutex_);
      status_ = status;
      is_over_ = true;
      changed_.SignalAll();
    });
  }
  ~WatchThread() { thread_.join(); }

  std::vector<v1::WatchResponse> Await(size_t count) {
    MutexLock lock(&mutex_);
    while (messages_.size() < count && !is_over_) changed_.Wait(&mutex_);
    return messages_;
  }
  // With the next message.
  void Stop() {
    MutexLock lock(&mutex_);
    is_stopping_ = true;
  }
  absl::Status AwaitEnd() {
    MutexLock lock(&mutex_);
    while (!is_over_) changed_.Wait(&mutex_);
    return status_;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::vector<v1::WatchResponse> messages_ ABSL_GUARDED_BY(mutex_);
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_over_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

TEST_F(TenantsServiceTest, WatchBeginsWithASnapshotAndGoesOnWithEvents) {
  Open();
  const CompressedObject one = Object(1);
  KVTIER_ASSERT_OK(Put(*client_, one));
  KVTIER_ASSERT_OK(Put(*other_, Object(2)));
  uint64_t incarnation = 0, sequence = 0;
  {
    WatchThread watch(*client_, {});
    const v1::WatchResponse first = watch.Await(1).at(0);
    ASSERT_TRUE(first.has_snapshot());
    EXPECT_TRUE(first.snapshot().last());
    ASSERT_EQ(first.snapshot().objects_size(), 1);
    EXPECT_EQ(first.snapshot().objects(0).name().key(), one.manifest->key.AsStringView());
    EXPECT_EQ(first.snapshot().objects(0).resident_bands(), one.manifest->bands.size());
    incarnation = first.snapshot().incarnation();
    EXPECT_EQ(incarnation, store_->incarnation());
    EXPECT_EQ(store_->watch_count(), 1u);

    KVTIER_ASSERT_OK(client_->Delete(one.manifest->key, 0.3, Soon()));
    KVTIER_ASSERT_OK(Put(*other_, Object(3)));
    const v1::WatchEvent lowered = watch.Await(2).at(1).event();
    EXPECT_EQ(lowered.residency().resident_bands(), 3u);
    EXPECT_EQ(lowered.residency().reason(), v1::ResidencyChange::REASON_REQUESTED);
    EXPECT_EQ(lowered.name().upload_id(), one.manifest->upload_id.AsStringView());
    EXPECT_EQ(lowered.incarnation(), incarnation);
    EXPECT_GT(lowered.sequence(), first.snapshot().sequence());
    watch.Stop();
    KVTIER_ASSERT_OK(client_->Delete(one.manifest->key, 0, Soon()));
    KVTIER_EXPECT_OK(watch.AwaitEnd());
    const v1::WatchEvent removed = watch.Await(3).at(2).event();
    EXPECT_EQ(removed.removed().reason(), v1::Removal::REASON_DELETED);
    sequence = lowered.sequence();
  }
  // From a number: what came after it, without a snapshot.
  v1::WatchRequest request;
  request.set_incarnation(incarnation);
  request.set_after_sequence(sequence);
  {
    WatchThread watch(*client_, request);
    EXPECT_EQ(watch.Await(1).at(0).event().removed().reason(), v1::Removal::REASON_DELETED);
    watch.Stop();
    KVTIER_ASSERT_OK(Put(*client_, one));
    KVTIER_EXPECT_OK(watch.AwaitEnd());
    const v1::WatchEvent sealed = watch.Await(2).at(1).event();
    EXPECT_EQ(sealed.sealed().context_tokens(), one.manifest->context_tokens);
  }
  // From a number of another incarnation: a snapshot.
  request.set_incarnation(incarnation + 1);
  WatchThread watch(*client_, request);
  EXPECT_TRUE(watch.Await(1).at(0).has_snapshot());
  // A store that stops says so at once.
  store_->StopWatches();
  EXPECT_THAT(watch.AwaitEnd(), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(client_->Watch({}, Soon(), [](const v1::WatchResponse&) { return true; }),
              StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(TenantsServiceTest, AWatcherThatGoesLeavesNothing) {
  Open();
  for (int i = 0; i < 20; ++i) {
    // The deadline ends it while nothing happens.
    EXPECT_THAT(client_->Watch({}, absl::Now() + absl::Milliseconds(i % 5 == 0 ? 50 : 1),
                               [](const v1::WatchResponse&) { return true; }),
                StatusIs(absl::StatusCode::kDeadlineExceeded));
  }
  const absl::Time give_up = Soon();
  while (store_->watch_count() > 0 && absl::Now() < give_up) {
    KVTIER_ASSERT_OK(client_->Stats(Soon()));
  }
  EXPECT_EQ(store_->watch_count(), 0u);
}

TEST_F(TenantsServiceTest, TooManyWatchesAreRefused) {
  Open();
  std::vector<std::unique_ptr<ObjectWatch>> held;
  for (uint32_t i = 0; i < limits::kWatchersPerTenantMax; ++i) {
    held.push_back(*store_->Watch(TenantId(), std::nullopt));
  }
  const absl::Status refused =
      client_->Watch({}, Soon(), [](const v1::WatchResponse&) { return true; });
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_TRUE(RetryAfter(refused).has_value());
  held.clear();
}

TEST_F(TenantsServiceTest, ALargeSnapshotComesInParts) {
  Open();
  constexpr uint32_t kObjects = limits::kListPageMax + 7;
  for (uint64_t seed = 0; seed < kObjects; ++seed) {
    KVTIER_ASSERT_OK(store_->Put(
        TenantId(), MakeTestObject({.layers = 1, .context_tokens = 12, .edges = "1", .seed = seed}),
        Durability::kHost));
  }
  WatchThread watch(*client_, {});
  const std::vector<v1::WatchResponse> parts = watch.Await(2);
  EXPECT_EQ(parts.at(0).snapshot().objects_size(), static_cast<int>(limits::kListPageMax));
  EXPECT_FALSE(parts.at(0).snapshot().last());
  EXPECT_EQ(parts.at(1).snapshot().objects_size(), 7);
  EXPECT_TRUE(parts.at(1).snapshot().last());
  store_->StopWatches();
  EXPECT_THAT(watch.AwaitEnd(), StatusIs(absl::StatusCode::kUnavailable));
}

}  // namespace
}  // namespace kvtier
