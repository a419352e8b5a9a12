// kvtier-bench lookup: batches of prompts asked of a store that has a million objects.
//
// The store is a real one, in this process: a million Puts over gRPC would take minutes and
// measure nothing. Its service and its server are those of kvtier-store, and each batch goes over
// loopback and back. The limit is the request's bytes over plain sockets, since what a batch
// brings (128 KiB of hashes) is far more than its answer: nothing that reads the hashes at the
// other end can be faster. The index alone stands beside random reads of a memory of its size.

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>  // NOLINT(build/c++11)
#include <utility>
#include <vector>

#include <grpcpp/client_context.h>

#include "absl/strings/str_cat.h"
#include "base/aligned_bytes.h"
#include "base/clock.h"
#include "base/status_macros.h"
#include "bench/machine_limits.h"
#include "bench/stored_object.h"
#include "bench/suite.h"
#include "bench/timing.h"
#include "kvcache/token_block_hash.h"
#include "kvtier/v1/store.grpc.pb.h"
#include "services/client.h"
#include "services/server.h"
#include "services/status_grpc.h"
#include "services/store_service.h"
#include "store/prefix_index.h"
#include "store/tiered_store.h"

namespace kvtier::bench {
namespace {

constexpr uint32_t kPrompts = 64;
constexpr uint32_t kBlocks = 64;
constexpr uint64_t kBatchHashes = uint64_t{kPrompts} * kBlocks;
// Different batches that take turns, so that no probe finds its memory in the cache by chance.
constexpr size_t kBatches = 256;
// Objects sealed in a second, while lookups go on.
constexpr int kSealsPerSecond = 1000;
constexpr char kName[] = "lookup of 64 prompts x 64 blocks";

// The last full block of an object, as random as a real one.
TokenBlockHash BlockOf(uint64_t object) {
  std::mt19937_64 random(object);
  std::array<std::byte, TokenBlockHash::kSize> bytes;
  for (size_t at = 0; at < bytes.size(); at += sizeof(uint64_t)) {
    const uint64_t word = random();
    std::memcpy(bytes.data() + at, &word, sizeof(word));
  }
  return TokenBlockHash(bytes);
}

template <typename Id>
Id NumberedId(uint64_t number) {
  std::array<std::byte, Id::kSize> bytes{std::byte{1}};  // Never all zero.
  std::memcpy(bytes.data() + 1, &number, sizeof(number));
  return Id(bytes);
}

// Puts tiny objects of one block, each under a key and a last block of its own.
class Sealer {
 public:
  static absl::StatusOr<std::unique_ptr<Sealer>> Create(TieredStore& store) {
    // One row is kept: what an object holds does not matter here.
    const ObjectShape shape = {.layers = 1,
                               .kv_heads = 1,
                               .head_dim = 8,
                               .tokens = kTokenBlockTokens,
                               .edges = {1.0 / kTokenBlockTokens}};
    KVTIER_ASSIGN_OR_RETURN(CompressedObject object, MakeStoredObject(shape, /*seed=*/1));
    return std::unique_ptr<Sealer>(new Sealer(store, std::move(object)));
  }
  absl::Status Seal(uint64_t number) {
    auto manifest = std::make_shared<Manifest>(*object_.manifest);
    manifest->key = NumberedId<Key>(number);
    manifest->upload_id = NumberedId<UploadId>(number);
    manifest->last_block_hash = BlockOf(number);
    CompressedObject object;
    object.manifest = std::move(manifest);
    object.segments = object_.segments;
    return store_.Put(TenantId(), object, Durability::kHost).status();
  }

 private:
  Sealer(TieredStore& store, CompressedObject object) : store_(store), object_(std::move(object)) {}
  TieredStore& store_;
  const CompressedObject object_;
};

// Batches of prompts: every other prompt begins with a stored context that ends at a block of it,
// all other blocks are nobody's.
std::vector<v1::LookupRequest> MakeBatches(uint64_t objects) {
  std::mt19937_64 random(7);
  std::vector<v1::LookupRequest> batches(kBatches);
  for (v1::LookupRequest& batch : batches) {
    for (uint32_t p = 0; p < kPrompts; ++p) {
      v1::LookupPrompt& prompt = *batch.add_prompts();
      prompt.set_context_tokens(uint64_t{kBlocks} * kTokenBlockTokens);
      std::string& hashes = *prompt.mutable_block_hashes();
      const uint64_t stored_at = p % 2 == 0 ? random() % kBlocks : kBlocks;
      for (uint64_t b = 0; b < kBlocks; ++b) {
        const uint64_t object = random() % objects;
        hashes.append(BlockOf(b == stored_at ? object : objects + random()).AsStringView().data(),
                      TokenBlockHash::kSize);
      }
    }
  }
  return batches;
}

class LookupCaller {
 public:
  LookupCaller(const std::shared_ptr<grpc::Channel>& channel, uint64_t objects)
      : stub_(v1::StoreService::NewStub(channel)), batches_(MakeBatches(objects)) {}

  const std::vector<v1::LookupRequest>& batches() const { return batches_; }
  absl::StatusOr<double> LookupNext() {
    const v1::LookupRequest& batch = batches_[next_++ % batches_.size()];
    grpc::ClientContext context;
    v1::LookupResponse response;
    KVTIER_ASSIGN_OR_RETURN(const double seconds, Seconds([&] {
                              return FromGrpcStatus(stub_->Lookup(&context, batch, &response));
                            }));
    if (response.results_size() != static_cast<int>(kPrompts)) {
      return absl::InternalError("a lookup answered for another number of prompts");
    }
    for (int p = 0; p < response.results_size(); ++p) {
      if (response.results(p).candidates_size() != (p % 2 == 0 ? 1 : 0)) {
        return absl::InternalError(absl::StrCat("prompt ", p, " has another number of candidates"));
      }
    }
    return seconds;
  }

 private:
  const std::unique_ptr<v1::StoreService::Stub> stub_;
  const std::vector<v1::LookupRequest> batches_;
  size_t next_ = 0;
};

// Seals objects at a steady rate, from `first` on, until it goes.
class SealingThread {
 public:
  SealingThread(Sealer& sealer, uint64_t first)
      : thread_([this, &sealer, first] {
          const absl::Duration interval = absl::Seconds(1) / kSealsPerSecond;
          absl::Time due = absl::Now();
          for (uint64_t number = first; !stop_; ++number, due += interval) {
            absl::SleepFor(due - absl::Now());
            if (!sealer.Seal(number).ok()) ++failures_;
          }
        }) {}
  ~SealingThread() {
    stop_ = true;
    thread_.join();
  }
  uint64_t failures() const { return failures_; }

 private:
  std::atomic<bool> stop_{false};
  std::atomic<uint64_t> failures_{0};
  std::thread thread_;
};

double Sum(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum;
}

// The same probes without store or wire, in turns with random reads of as much memory.
absl::StatusOr<Row> MeasureIndexAlone(const std::vector<v1::LookupRequest>& batches,
                                      uint64_t objects, int runs) {
  PrefixIndex index;
  for (uint64_t i = 0; i < objects; ++i) {
    index.Insert(TenantId(), BlockOf(i),
                 {.context_tokens = kTokenBlockTokens, .upload = NumberedId<UploadId>(i)});
  }
  // Twice the slots of as many objects: what a table that has just grown takes.
  const AlignedBytes memory = AlignedBytes::Allocate(2 * 64 * objects);
  const uint64_t hashes = batches.size() * kBatchHashes;
  uint64_t found = 0;
  using Figures = absl::StatusOr<std::vector<double>>;
  KVTIER_ASSIGN_OR_RETURN(
      const auto medians,
      MediansInTurns(
          runs,
          {{[&]() -> Figures { return std::vector<double>{RandomReadSeconds(memory, hashes)}; }},
           {[&]() -> Figures {
             KVTIER_ASSIGN_OR_RETURN(const double seconds, Seconds([&] {
                                       for (const v1::LookupRequest& batch : batches) {
                                         for (const v1::LookupPrompt& prompt : batch.prompts()) {
                                           const PrefixQuery query = {
                                               .block_hashes = prompt.block_hashes(),
                                               .context_tokens = prompt.context_tokens()};
                                           found += index.Find(TenantId(), query, 64).size();
                                         }
                                       }
                                       return absl::OkStatus();
                                     }));
             return std::vector<double>{seconds};
           }}}));
  if (found == 0) return absl::InternalError("the index finds nothing");
  return Row{absl::StrCat(kName, ", index alone"), static_cast<double>(hashes) / medians[1][0],
             "hashes/s", static_cast<double>(hashes) / medians[0][0], "random reads of memory"};
}

}  // namespace

absl::StatusOr<SuiteResult> RunLookupSuite(const StoreSuiteOptions& options) {
  const uint64_t objects = options.is_quick ? 10'000 : 1'000'000;
  const int warm_up = options.is_quick ? 5 : 200;
  const int count = options.is_quick ? 50 : 4000;
  TieredStoreOptions store_options;
  store_options.host_budget_bytes = objects * 8192;  // A tiny band is charged a page.
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<TieredStore> store,
                          TieredStore::Create(store_options, nullptr, Clock::Real()));
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<Sealer> sealer, Sealer::Create(*store));
  for (uint64_t i = 0; i < objects; ++i) KVTIER_RETURN_IF_ERROR(sealer->Seal(i));
  if (store->object_count() != objects) return absl::InternalError("the store evicted objects");
  Metrics metrics;
  const std::unique_ptr<grpc::Service> service =
      MakeStoreService(StoreServiceOptions(), *store, metrics, Clock::Real());
  ServerOptions server_options;
  server_options.metrics_listen = "";
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<Server> server,
                          Server::Start(server_options, {service.get()}, metrics));
  LookupCaller caller(MakeChannel(absl::StrCat("127.0.0.1:", server->port())), objects);
  const uint64_t request_bytes = caller.batches()[0].ByteSizeLong();
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<RawTcp> tcp, RawTcp::Connect(request_bytes));

  std::vector<double> lookups, raw, beside_seals;
  for (int i = -warm_up; i < count; ++i) {
    KVTIER_ASSIGN_OR_RETURN(const double seconds, caller.LookupNext());
    KVTIER_ASSIGN_OR_RETURN(const RawTcp::Sample sample, tcp->Transfer());
    if (i < 0) continue;
    lookups.push_back(seconds);
    raw.push_back(sample.seconds);
  }
  {
    SealingThread seals(*sealer, objects);
    for (int i = 0; i < count; ++i) {
      KVTIER_ASSIGN_OR_RETURN(beside_seals.emplace_back(), caller.LookupNext());
    }
    if (seals.failures() > 0) return absl::InternalError("objects could not be sealed");
  }
  const double hashes = static_cast<double>(kBatchHashes) * count;
  SuiteResult result;
  result.facts = {{"objects", static_cast<double>(objects)},
                  {"batches", count},
                  {"request_bytes", static_cast<double>(request_bytes)}};
  result.rows = {
      {kName, hashes / Sum(lookups), "hashes/s", hashes / Sum(raw), "raw TCP",
       Target::AtLeast(3e6)},
      {absl::StrCat(kName, ", p99 of a batch"), 1e3 * Percentile(lookups, 0.99), "ms",
       1e3 * Percentile(raw, 0.99), "raw TCP", Target::AtMost(5)},
      {absl::StrCat(kName, ", p99 of a batch while ", kSealsPerSecond,
                    " objects a second are sealed"),
       1e3 * Percentile(beside_seals, 0.99), "ms"},
      {absl::StrCat(kName, ", the longest of ", count, " batches"),
       1e3 * *std::ranges::max_element(lookups), "ms"},
  };
  KVTIER_ASSIGN_OR_RETURN(Row alone, MeasureIndexAlone(caller.batches(), objects, options.runs));
  result.rows.push_back(std::move(alone));
  return result;
}

}  // namespace kvtier::bench
