// Opaque pages over gRPC: PageClient and raw messages against the service, and a real store that is
// killed.
#include <csignal>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <grpcpp/create_channel.h>
#include <grpcpp/impl/rpc_method.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/sync_stream.h>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/clock.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/sha256.h"
#include "kvtier/v1/pages.grpc.pb.h"
#include "services/client.h"
#include "services/frames.h"
#include "services/metrics.h"
#include "services/page_client.h"
#include "services/page_service.h"
#include "services/server.h"
#include "services/status_grpc.h"
#include "store/page_store.h"
#include "store/rocksdb_page_tier.h"
#include "tests/testing/child_process.h"
#include "tests/testing/local_server.h"
#include "tests/testing/random.h"
#include "tests/testing/temp_dir.h"

namespace kvtier {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Code = absl::StatusCode;

absl::Time Soon() { return absl::Now() + absl::Seconds(50); }

PageKey Key(int number) {
  return *PageKey::FromBytes(ComputeSha256(AsBytes(absl::StrCat("page", number))).AsStringView());
}

std::vector<std::byte> Bytes(int number, size_t size = 4096) {
  std::mt19937_64 random(static_cast<uint64_t>(number));
  return RandomBytes(random, size);
}

// Puts pages [begin, end); one status each.
absl::StatusOr<std::vector<absl::Status>> PutRange(PageClient& client, int begin, int end,
                                                   v1::Durability durability) {
  std::vector<std::vector<std::byte>> bytes;
  for (int i = begin; i < end; ++i) bytes.push_back(Bytes(i));
  std::vector<PageClient::PutItem> items;
  for (int i = begin; i < end; ++i) {
    items.push_back({Key(i), bytes[static_cast<size_t>(i - begin)]});
  }
  return client.Put(items, durability, Soon());
}

// The code of each page of [begin, end). INTERNAL: it is there with other bytes.
std::vector<Code> GetRange(PageClient& client, int begin, int end) {
  std::vector<std::vector<std::byte>> rooms(static_cast<size_t>(end - begin),
                                            std::vector<std::byte>(4096));
  std::vector<PageClient::GetItem> items;
  for (int i = begin; i < end; ++i) {
    items.push_back({Key(i), rooms[static_cast<size_t>(i - begin)]});
  }
  const absl::StatusOr<std::vector<PageClient::Got>> got = client.Get(items, Soon());
  KVTIER_CHECK_OK(got);
  std::vector<Code> codes;
  for (int i = begin; i < end; ++i) {
    const size_t at = static_cast<size_t>(i - begin);
    const PageClient::Got& page = (*got)[at];
    const bool is_wrong = page.status.ok() && (page.bytes != 4096 || rooms[at] != Bytes(i));
    codes.push_back(is_wrong ? Code::kInternal : page.status.code());
  }
  return codes;
}

class PagesTest : public testing::Test {
 protected:
  void Open(uint64_t host_bytes, bool with_disk, const PageServiceOptions& options = {},
            const TenantQuotas& quotas = {}) {
    std::unique_ptr<PageTier> disk;
    if (with_disk) {
      disk = *OpenRocksDbPageTier({.folder = dir_.File("pages"), .budget_bytes = 64 << 20});
    }
    store_ = PageStore::Create({.host_budget_bytes = host_bytes, .tenant_quotas = quotas},
                               std::move(disk));
    metrics_ = std::make_unique<Metrics>();
    service_ = MakePageService(options, *store_, *metrics_, Clock::Real());
    server_ = StartLocalServer({service_.get()}, *metrics_);
    channel_ = ChannelTo(*server_);
    client_ = std::make_unique<PageClient>(channel_);
    stub_ = v1::PageService::NewStub(channel_);
  }

  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (v1::PageService::Stub::*method)(grpc::ClientContext*,
                                                                              const Request&,
                                                                              Response*),
                                const Request& request) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(Soon()));
    Response response;
    const grpc::Status status = (stub_.get()->*method)(&context, request, &response);
    if (!status.ok()) return FromGrpcStatus(status);
    return response;
  }

  TempDir dir_;
  std::unique_ptr<PageStore> store_;
  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<grpc::Service> service_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<PageClient> client_;
  std::unique_ptr<v1::PageService::Stub> stub_;
};

TEST_F(PagesTest, WhatIsPutIsThere) {
  Open(16 << 20, /*with_disk=*/false);
  EXPECT_THAT(*PutRange(*client_, 0, 32, v1::DURABILITY_HOST), Each(IsOk()));
  EXPECT_THAT(*PutRange(*client_, 31, 33, v1::DURABILITY_UNSPECIFIED), Each(IsOk()))
      << "putting again is fine";
  EXPECT_THAT(GetRange(*client_, 32, 34), ElementsAre(Code::kOk, Code::kNotFound));
  EXPECT_THAT(GetRange(*client_, 0, 32), Each(Code::kOk));
  const PageKey keys[] = {Key(1), Key(99), Key(2)};
  EXPECT_THAT(*client_->Exists(keys, Soon()), ElementsAre(true, false, true));
  EXPECT_THAT(*client_->Delete(keys, Soon()),
              ElementsAre(IsOk(), StatusIs(Code::kNotFound), IsOk()));
  EXPECT_THAT(*client_->Exists(keys, Soon()), Each(false));
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::PageStatsResponse stats, client_->Stats(Soon()));
  EXPECT_EQ(stats.host_pages(), 31u);
  EXPECT_EQ(stats.limits().page_bytes_max(), limits::kPageBytesMax);
  EXPECT_EQ(stats.disk_budget_bytes(), 0u);
  EXPECT_EQ(stats.limits().disk_page_bytes_max(), 0u);
}

TEST_F(PagesTest, AnyClientReadsWhatIsSentWithoutCopies) {
  Open(16 << 20, /*with_disk=*/false);
  ASSERT_THAT(*PutRange(*client_, 0, 2, v1::DURABILITY_HOST), Each(IsOk()));
  v1::BatchGetRequest request;
  for (const int page : {0, 7, 1}) request.add_keys(std::string(Key(page).AsStringView()));
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::BatchGetResponse response,
                              Call(&v1::PageService::Stub::BatchGet, request));
  ASSERT_EQ(response.pages_size(), 3);
  EXPECT_EQ(response.pages(0).code(), 0u);
  EXPECT_EQ(response.pages(0).payload(), ToString(Bytes(0)));
  EXPECT_EQ(response.pages(0).crc32c(), ComputeCrc32c(Bytes(0)).value());
  EXPECT_EQ(response.pages(1).code(), static_cast<uint32_t>(Code::kNotFound));
  EXPECT_EQ(response.pages(1).payload(), "");
  EXPECT_EQ(response.pages(2).payload(), ToString(Bytes(1)));
}

TEST_F(PagesTest, SizesFromOneByteToTheLargest) {
  Open(64 << 20, /*with_disk=*/false);
  int number = 100;
  for (const uint64_t size : {uint64_t{1}, uint64_t{31}, uint64_t{65'537}, limits::kPageBytesMax}) {
    SCOPED_TRACE(size);
    const std::vector<std::byte> bytes = Bytes(++number, size);
    const PageClient::PutItem put[] = {{Key(number), bytes}};
    ASSERT_THAT(*client_->Put(put, v1::DURABILITY_HOST, Soon()), ElementsAre(IsOk()));
    std::vector<std::byte> room(size);
    const PageClient::GetItem get[] = {{Key(number), room}};
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto got, client_->Get(get, Soon()));
    EXPECT_THAT(got[0].status, IsOk());
    EXPECT_EQ(got[0].bytes, size);
    EXPECT_TRUE(room == bytes);
    std::vector<std::byte> small(size - 1);
    const PageClient::GetItem too_small[] = {{Key(number), small}};
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto refused, client_->Get(too_small, Soon()));
    EXPECT_THAT(refused[0].status, StatusIs(Code::kOutOfRange));
  }
  const std::vector<std::byte> too_large = Bytes(1, limits::kPageBytesMax + 1);
  const PageClient::PutItem put[] = {{Key(1), too_large}};
  EXPECT_THAT(*client_->Put(put, v1::DURABILITY_HOST, Soon()),
              ElementsAre(StatusIs(Code::kInvalidArgument)));
}

TEST_F(PagesTest, AResponseHasAtMostSoManyBytes) {
  Open(128 << 20, /*with_disk=*/false);
  std::vector<PageKey> keys;
  for (int i = 0; i < 5; ++i) {
    const std::vector<std::byte> bytes = Bytes(i, limits::kPageBytesMax);
    const PageClient::PutItem put[] = {{Key(i), bytes}};
    ASSERT_THAT(*client_->Put(put, v1::DURABILITY_HOST, Soon()), ElementsAre(IsOk()));
    keys.push_back(Key(i));
  }
  v1::BatchGetRequest request;
  for (const PageKey& key : keys) request.add_keys(std::string(key.AsStringView()));
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::BatchGetResponse response,
                              Call(&v1::PageService::Stub::BatchGet, request));
  for (int i = 0; i < 4; ++i) EXPECT_EQ(response.pages(i).code(), 0u);
  EXPECT_EQ(response.pages(4).code(), static_cast<uint32_t>(Code::kResourceExhausted));
}

TEST_F(PagesTest, RefusesWhatLimitsForbid) {
  Open(16 << 20, /*with_disk=*/false);
  v1::BatchGetRequest get;
  get.add_keys("short");
  EXPECT_THAT(Call(&v1::PageService::Stub::BatchGet, get),
              StatusIs(Code::kInvalidArgument, HasSubstr("key 0")));
  get.Clear();
  for (uint32_t i = 0; i <= limits::kPageBatchMax; ++i) get.add_keys(std::string(32, 'k'));
  EXPECT_THAT(Call(&v1::PageService::Stub::BatchGet, get),
              StatusIs(Code::kInvalidArgument, HasSubstr("1024")));
  v1::BatchPutRequest unknown;
  unknown.set_durability(static_cast<v1::Durability>(7));
  EXPECT_THAT(Call(&v1::PageService::Stub::BatchPut, unknown),
              StatusIs(Code::kInvalidArgument, HasSubstr("durability 7")));
  v1::BatchPutRequest put;
  put.add_pages()->set_key("short");
  EXPECT_THAT(Call(&v1::PageService::Stub::BatchPut, put),
              StatusIs(Code::kInvalidArgument, HasSubstr("page 0")));
  put.Clear();
  put.add_pages()->set_key(std::string(32, 'k'));
  put.set_durability(v1::DURABILITY_DISK);
  EXPECT_THAT(Call(&v1::PageService::Stub::BatchPut, put),
              StatusIs(Code::kFailedPrecondition, HasSubstr("page_disk_mib")));
  put.set_durability(v1::DURABILITY_HOST);
  put.mutable_pages(0)->set_payload("bytes");
  put.mutable_pages(0)->set_crc32c(7);
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::BatchPutResponse response,
                              Call(&v1::PageService::Stub::BatchPut, put));
  EXPECT_EQ(response.codes(0), static_cast<uint32_t>(Code::kInvalidArgument));
}

TEST_F(PagesTest, ADrainRefusesWhatComes) {
  DrainSignal drain;
  Open(16 << 20, /*with_disk=*/false, {.drain = &drain});
  EXPECT_THAT(*PutRange(*client_, 0, 1, v1::DURABILITY_HOST), Each(IsOk()));
  drain.Fire();
  EXPECT_THAT(client_->Stats(Soon()), StatusIs(Code::kUnavailable, testing::HasSubstr("stopping")));
  server_.reset();
  service_.reset();  // Before the signal.
}

TEST_F(PagesTest, TenantsDoNotSeeEachOther) {
  Open(16 << 20, /*with_disk=*/false);
  ASSERT_THAT(*PutRange(*client_, 0, 1, v1::DURABILITY_HOST), Each(IsOk()));
  PageClient other(channel_, *TenantId::FromString("other"));
  EXPECT_THAT(GetRange(other, 0, 1), ElementsAre(Code::kNotFound));
  EXPECT_THAT(GetRange(*client_, 0, 1), ElementsAre(Code::kOk));
}

TEST_F(PagesTest, StatsTellATenantWhatItHas) {
  Open(16 << 20, /*with_disk=*/true, {}, {.of = {}, .default_bytes = 1 << 20});
  ASSERT_THAT(*PutRange(*client_, 0, 3, v1::DURABILITY_HOST), Each(IsOk()));
  ASSERT_THAT(*PutRange(*client_, 3, 4, v1::DURABILITY_DISK), Each(IsOk()));
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::PageStatsResponse stats, client_->Stats(Soon()));
  EXPECT_EQ(stats.tenant().host_pages(), 4u);
  EXPECT_EQ(stats.tenant().host_bytes(), 4 * (4096 + kPageOverheadBytes));
  EXPECT_EQ(stats.tenant().disk_bytes(), 4096 + kPageDiskOverheadBytes);
  EXPECT_EQ(stats.tenant().quota_bytes(), 1u << 20);
  EXPECT_EQ(stats.limits().disk_page_bytes_max(), store_->disk_usage()->page_bytes_max);
  PageClient other(channel_, *TenantId::FromString("other"));
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::PageStatsResponse others, other.Stats(Soon()));
  EXPECT_EQ(others.tenant().host_pages(), 0u);
  EXPECT_EQ(others.host_pages(), 4u);
}

// A BatchGet whose answer is not taken: the request is sent, nothing is read, and HTTP/2 lets the
// server send no more than a window's worth.
class UnreadGet {
 public:
  UnreadGet(int port, const PageKey& key) {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);  // The window stays as it is.
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    channel_ = grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", port),
                                         grpc::InsecureChannelCredentials(), arguments);
    context_.set_deadline(absl::ToChronoTime(Soon()));
    stream_.reset(
        grpc::internal::ClientReaderWriterFactory<grpc::ByteBuffer, grpc::ByteBuffer>::Create(
            channel_.get(),
            grpc::internal::RpcMethod("/kvtier.v1.PageService/BatchGet",
                                      grpc::internal::RpcMethod::BIDI_STREAMING),
            &context_));
    v1::BatchGetRequest request;
    request.add_keys(std::string(key.AsStringView()));
    const grpc::ByteBuffer bytes = SerializeToByteBuffer(request);
    KVTIER_CHECK(stream_->Write(bytes));
    KVTIER_CHECK(stream_->WritesDone());
  }
  // How the call ended.
  absl::Status Read() {
    grpc::ByteBuffer response;
    while (stream_->Read(&response)) {
    }
    return FromGrpcStatus(stream_->Finish());
  }

 private:
  std::shared_ptr<grpc::Channel> channel_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>> stream_;
};

TEST_F(PagesTest, ACallHoldsItsSlotUntilItsAnswerIsTaken) {
  Open(64 << 20, /*with_disk=*/false, {.calls_max = 2});  // One for each tenant.
  // Not by a call, which might have its slot for a moment longer.
  std::vector<PagePut> puts;
  puts.push_back({.key = Key(1), .bytes = ToString(Bytes(1, limits::kPageBytesMax))});
  ASSERT_THAT(store_->Put(TenantId(), std::move(puts), Durability::kHost), ElementsAre(IsOk()));
  UnreadGet unread(server_->port(), Key(1));
  while (store_->counters().host_hits == 0) std::this_thread::yield();  // It is made.
  // It stays refused: the answer, all 16 MiB of it, waits for its reader.
  for (int i = 0; i < 20; ++i) {
    EXPECT_THAT(client_->Stats(Soon()),
                StatusIs(Code::kResourceExhausted, HasSubstr("tenant default has 1 calls")));
  }
  PageClient other(channel_, *TenantId::FromString("other"));
  EXPECT_THAT(other.Stats(Soon()), IsOk()) << "the other tenant's share is free";
  EXPECT_THAT(unread.Read(), IsOk());
  absl::Status free;
  do {
    free = client_->Stats(Soon()).status();
  } while (absl::IsResourceExhausted(free));
  EXPECT_THAT(free, IsOk());
}

TEST_F(PagesTest, BatchesMixHostDiskAndMisses) {
  Open(8 * (4096 + kPageOverheadBytes), /*with_disk=*/true);
  ASSERT_THAT(*PutRange(*client_, 0, 8, v1::DURABILITY_DISK), Each(IsOk()));
  ASSERT_THAT(*PutRange(*client_, 8, 12, v1::DURABILITY_DISK), Each(IsOk()));  // Evicts some.
  EXPECT_THAT(GetRange(*client_, 0, 12), Each(Code::kOk));
  EXPECT_THAT(GetRange(*client_, 11, 13), ElementsAre(Code::kOk, Code::kNotFound));
  const PageCounters& counters = store_->counters();
  EXPECT_GT(counters.disk_hits, 0u);
  EXPECT_EQ(counters.gets,
            counters.host_hits + counters.disk_hits + counters.misses + counters.failures);
}

TEST(PagesProcessTest, DiskPagesSurviveKillAndHostPagesDoNot) {
  TempDir dir;
  const std::vector<std::string> flags = {"--data_dir=" + dir.File("data"), "--page_disk_mib=64",
                                          "--page_host_mib=16"};
  int acknowledged = 0;
  for (int round = 0; round < 3; ++round) {
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto store, ServerProcess::Start("kvtier-store", flags));
    PageClient client(MakeChannel(store->address()));
    for (int begin = 0; begin < acknowledged; begin += 32) {
      EXPECT_THAT(GetRange(client, begin, begin + 32), Each(Code::kOk)) << begin;
    }
    EXPECT_THAT(GetRange(client, 1'000'000, 1'000'032), Each(Code::kNotFound));
    for (int batch = 0; batch < 20; ++batch) {
      const auto put = PutRange(client, acknowledged, acknowledged + 32, v1::DURABILITY_DISK);
      ASSERT_THAT(put, IsOk());
      ASSERT_THAT(*put, Each(IsOk()));
      acknowledged += 32;
    }
    ASSERT_THAT(*PutRange(client, 1'000'000, 1'000'032, v1::DURABILITY_HOST), Each(IsOk()));
    store->Kill();
  }
}

}  // namespace
}  // namespace kvtier
