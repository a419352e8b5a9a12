// Prefix lookup from an engine's point of view: PrefixLookup over gRPC against a store whose
// objects are named as a compressor names them.
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/key_descriptor.h"
#include "kvcache/sha256.h"
#include "kvcache/token_block_hash.h"
#include "kvtier/v1/store.grpc.pb.h"
#include "services/client.h"
#include "services/metrics.h"
#include "services/prefix_lookup.h"
#include "services/server.h"
#include "services/status_grpc.h"
#include "services/store_service.h"
#include "tests/testing/local_server.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;
using Tokens = std::vector<uint32_t>;

constexpr uint32_t kBlock = kTokenBlockTokens;
constexpr uint64_t kPlenty = 64 << 20;

absl::Time Soon() { return absl::Now() + absl::Seconds(50); }

Tokens Prompt(uint32_t count, uint32_t first = 7) {
  Tokens tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

class LookupTest : public testing::Test {
 protected:
  LookupTest() {
    head_.tenant_salt = "salt";
    head_.model_digest = ComputeSha256(AsBytes("model"));
    head_.rope = "rope";
    head_.prompt_profile_digest = ComputeSha256(AsBytes("profile"));
    head_.recipe = "kvzip/1";
    head_.system_token_ids = {1, 2, 3, 4};
  }

  void Open(uint64_t host_budget_bytes = kPlenty, const StoreServiceOptions& options = {}) {
    store_ = *OpenTestStore(dir_.File("store"), host_budget_bytes, Clock::Real());
    metrics_ = std::make_unique<Metrics>();
    service_ = MakeStoreService(options, *store_, *metrics_, Clock::Real());
    server_ = StartLocalServer({service_.get()}, *metrics_);
    channel_ = ChannelTo(*server_);
    lookup_ = std::make_unique<PrefixLookup>(channel_);
  }

  // Stores what a compressor would for these tokens.
  CompressedObject Put(const KeyDescriptorHead& head, const Tokens& tokens,
                       Durability durability = Durability::kHost) {
    TestObjectOptions options;
    options.context_tokens = static_cast<uint32_t>(tokens.size());
    options.seed = ++seed_;
    options.key = *ComputeKey(head, tokens);
    const std::vector<TokenBlockHash> hashes =
        ComputeTokenBlockHashes(*ComputeHeadDigest(head), tokens);
    if (!hashes.empty()) options.last_block_hash = hashes.back();
    const CompressedObject object = MakeTestObject(options);
    KVTIER_CHECK_OK(store_->Put(TenantId(), object, durability));
    return object;
  }

  std::optional<PrefixHit> Find(const KeyDescriptorHead& head, const Tokens& prompt,
                                std::optional<Ratio> min_ratio = std::nullopt) {
    const std::span<const uint32_t> prompts[] = {prompt};
    return lookup_->Lookup(head, prompts, Soon(), min_ratio)[0];
  }
  // Context tokens of the hit; 0: a miss.
  uint64_t FoundTokens(const KeyDescriptorHead& head, const Tokens& prompt) {
    const std::optional<PrefixHit> hit = Find(head, prompt);
    return hit.has_value() ? hit->context_tokens : 0;
  }

  absl::StatusOr<v1::LookupResponse> Call(const v1::LookupRequest& request) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(Soon()));
    v1::LookupResponse response;
    const grpc::Status status =
        v1::StoreService::NewStub(channel_)->Lookup(&context, request, &response);
    if (!status.ok()) return FromGrpcStatus(status);
    return response;
  }

  const PrefixLookupCounters& counters() { return lookup_->counters(); }
  void ExpectCountersAddUp() {
    const PrefixLookupCounters& c = counters();
    EXPECT_EQ(c.prompts, c.hits + c.misses + c.unconfirmed + c.late + c.unavailable + c.refused);
  }

  TempDir dir_;
  KeyDescriptorHead head_;
  uint64_t seed_ = 0;
  std::unique_ptr<TieredStore> store_;
  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<grpc::Service> service_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<PrefixLookup> lookup_;
};

TEST_F(LookupTest, ObjectsAroundABlockBorderAreFoundByPromptsAroundTheirEnd) {
  Open();
  for (const uint32_t object_tokens : {3 * kBlock - 1, 3 * kBlock, 3 * kBlock + 1}) {
    SCOPED_TRACE(object_tokens);
    const uint32_t first = 1000 * object_tokens;  // Contexts that share nothing.
    const CompressedObject object = Put(head_, Prompt(object_tokens, first));
    EXPECT_EQ(FoundTokens(head_, Prompt(object_tokens - 1, first)), 0u) << "shorter than it";
    for (const uint32_t more : {0u, 1u, kBlock - 1, kBlock, 5 * kBlock + 3}) {
      SCOPED_TRACE(more);
      const std::optional<PrefixHit> hit = Find(head_, Prompt(object_tokens + more, first));
      ASSERT_TRUE(hit.has_value());
      EXPECT_EQ(hit->key, object.manifest->key);
      EXPECT_EQ(hit->upload, object.manifest->upload_id);
      EXPECT_EQ(hit->context_tokens, object_tokens);
    }
  }
  ExpectCountersAddUp();
}

TEST_F(LookupTest, ContextsShorterThanABlockAreNotFound) {
  Open();
  Put(head_, Prompt(kBlock - 1));
  EXPECT_EQ(FoundTokens(head_, Prompt(3 * kBlock)), 0u);
  EXPECT_EQ(counters().misses, 1u);
}

TEST_F(LookupTest, TheLongestPrefixIsChosenThoughOthersShareItsBlocks) {
  Open();
  const Tokens prompt = Prompt(4 * kBlock);
  Put(head_, Prompt(kBlock + 5));
  Put(head_, Prompt(2 * kBlock + 5));
  Tokens other_tail = Prompt(2 * kBlock + 9);  // As long a way, and then something else.
  other_tail.back() = 0;
  Put(head_, other_tail);
  Tokens same_length = Prompt(2 * kBlock + 5);
  same_length.back() = 0;
  Put(head_, same_length);
  EXPECT_EQ(FoundTokens(head_, prompt), 2 * kBlock + 5);
}

TEST_F(LookupTest, EqualBlocksWithAnotherTailAreCandidatesThatDoNotConfirm) {
  Open();
  Tokens stored = Prompt(2 * kBlock + 5);
  stored.back() = 0;
  Put(head_, stored);
  EXPECT_EQ(FoundTokens(head_, Prompt(4 * kBlock)), 0u);
  EXPECT_EQ(counters().unconfirmed, 1u);
  EXPECT_EQ(counters().hits, 0u);
  ExpectCountersAddUp();
}

TEST_F(LookupTest, AnotherConfigurationHasOtherObjects) {
  Open();
  const Tokens prompt = Prompt(2 * kBlock);
  Put(head_, prompt);
  ASSERT_EQ(FoundTokens(head_, prompt), 2 * kBlock);
  const std::map<std::string, void (*)(KeyDescriptorHead&)> changes = {
      {"recipe", [](KeyDescriptorHead& head) { head.recipe = "kvzip/1;codec=int8"; }},
      {"salt", [](KeyDescriptorHead& head) { head.tenant_salt = "another"; }},
      {"adapter", [](KeyDescriptorHead& head) { head.adapter = "lora"; }},
      {"model", [](KeyDescriptorHead& head) { head.model_digest = head.prompt_profile_digest; }},
      {"system prompt", [](KeyDescriptorHead& head) { head.system_token_ids.push_back(9); }},
  };
  for (const auto& [name, change] : changes) {
    SCOPED_TRACE(name);
    KeyDescriptorHead other = head_;
    change(other);
    EXPECT_EQ(FoundTokens(other, prompt), 0u);
  }
  PrefixLookup other_tenant(channel_, *TenantId::FromString("other"));
  const std::span<const uint32_t> prompts[] = {prompt};
  EXPECT_FALSE(other_tenant.Lookup(head_, prompts, Soon())[0].has_value());
  EXPECT_EQ(other_tenant.counters().misses, 1u) << "not even as a candidate";
}

TEST_F(LookupTest, ABatchAnswersInOrder) {
  Open();
  std::vector<Tokens> texts;
  for (uint32_t i = 0; i < limits::kLookupBatchMax + 10; ++i) {  // More than one call takes.
    texts.push_back(Prompt(kBlock + i % 5, 1 + 100'000 * i));
  }
  for (const size_t stored : {size_t{0}, size_t{3}, texts.size() - 1}) Put(head_, texts[stored]);
  const std::vector<std::span<const uint32_t>> prompts(texts.begin(), texts.end());
  const auto hits = lookup_->Lookup(head_, prompts, Soon());
  ASSERT_EQ(hits.size(), prompts.size());
  for (size_t i = 0; i < hits.size(); ++i) {
    EXPECT_EQ(hits[i].has_value(), i == 0 || i == 3 || i + 1 == hits.size()) << i;
  }
  EXPECT_EQ(counters().prompts, prompts.size());
  ExpectCountersAddUp();
}

TEST_F(LookupTest, ABatchOfTheLongestPromptsIsCutByItsBytes) {
  Open();
  // 40 prompts with 512 KiB of hashes each: 20 MiB, more than one call may bring.
  const Tokens text = Prompt(limits::kContextTokensMax + 100);  // And longer than can be stored.
  Put(head_, Prompt(kBlock + 3));
  const std::vector<std::span<const uint32_t>> prompts(40, text);
  for (const auto& hit : lookup_->Lookup(head_, prompts, Soon())) {
    ASSERT_TRUE(hit.has_value());
    EXPECT_EQ(hit->context_tokens, kBlock + 3);
  }
  EXPECT_EQ(counters().hits, 40u);
  EXPECT_EQ(counters().refused, 0u);
  EXPECT_EQ(metrics_->store_lookup_blocks.Value(), 40.0 * limits::kLookupBlocksMax);
  ExpectCountersAddUp();
}

TEST_F(LookupTest, SaysWhatIsResidentAndWhere) {
  StoreServiceOptions options;
  options.prefill_tokens_per_second = 1000;
  Open(kPlenty, options);
  const Tokens prompt = Prompt(2 * kBlock);
  const CompressedObject object = Put(head_, prompt, Durability::kDisk);
  std::optional<PrefixHit> hit = Find(head_, prompt);
  ASSERT_TRUE(hit.has_value());
  EXPECT_EQ(hit->candidate.system_tokens(), 4u);
  EXPECT_EQ(hit->candidate.resident_ratio_millionths(), 1'000'000u);
  EXPECT_EQ(hit->candidate.resident_bytes(), object.manifest->total_bytes());
  EXPECT_EQ(hit->candidate.tier(), v1::TIER_HOST);
  EXPECT_EQ(hit->candidate.load_us(), 0u) << "nothing has been fetched yet";
  EXPECT_EQ(hit->candidate.prefill_us(), 132'000u) << "128 + 4 tokens at 1,000 tokens/s";

  FetchRequest fetch;
  fetch.key = hit->key;
  fetch.min_ratio = *Ratio::FromDouble(0.1);
  ASSERT_THAT(FetchRaggedCache(*MakeGrpcTransport(channel_), fetch, Soon()), IsOk());
  EXPECT_GT(Find(head_, prompt)->candidate.load_us(), 0u);

  ASSERT_THAT(store_->DropBands(TenantId(), hit->key, 3), IsOk());
  hit = Find(head_, prompt);
  ASSERT_TRUE(hit.has_value());
  EXPECT_EQ(hit->candidate.resident_ratio_millionths(), 300'000u);
  EXPECT_EQ(hit->candidate.resident_bytes(), object.manifest->PrefixBytes(3));
  EXPECT_TRUE(Find(head_, prompt, *Ratio::FromDouble(0.3)).has_value());
  EXPECT_FALSE(Find(head_, prompt, *Ratio::FromDouble(0.4)).has_value());

  ASSERT_THAT(store_->Delete(TenantId(), hit->key), IsOk());
  EXPECT_FALSE(Find(head_, prompt).has_value());
}

TEST_F(LookupTest, WhatIsOnDiskOnlySaysSo) {
  Open(/*host_budget_bytes=*/64 << 10);
  constexpr uint32_t kObjects = 8;  // More than host memory has room for.
  for (uint32_t i = 1; i <= kObjects; ++i) {
    Put(head_, Prompt(2 * kBlock, 10'000 * i), Durability::kDisk);
  }
  uint32_t on_disk = 0;
  for (uint32_t i = 1; i <= kObjects; ++i) {
    const std::optional<PrefixHit> hit = Find(head_, Prompt(2 * kBlock, 10'000 * i));
    ASSERT_TRUE(hit.has_value());
    KVTIER_ASSERT_OK_AND_ASSIGN(const ObjectStat stat, store_->Stat(TenantId(), hit->key));
    const bool is_in_host = stat.host_bands == stat.resident_bands;
    EXPECT_EQ(hit->candidate.tier(), is_in_host ? v1::TIER_HOST : v1::TIER_DISK);
    on_disk += is_in_host ? 0 : 1;
  }
  EXPECT_GT(on_disk, 0u);
}

TEST_F(LookupTest, AMissedDeadlineIsACountedMiss) {
  Open();
  const Tokens prompt = Prompt(2 * kBlock);
  Put(head_, prompt);
  const std::span<const uint32_t> prompts[] = {prompt, prompt};
  const auto hits = lookup_->Lookup(head_, prompts, absl::Now() - absl::Seconds(1));
  EXPECT_FALSE(hits[0].has_value());
  EXPECT_EQ(counters().late, 2u);
  ExpectCountersAddUp();
}

TEST_F(LookupTest, AStoreThatIsAwayIsACountedMiss) {
  Open();
  server_->Shutdown();
  EXPECT_EQ(FoundTokens(head_, Prompt(2 * kBlock)), 0u);
  EXPECT_EQ(counters().unavailable, 1u);
  ExpectCountersAddUp();
}

TEST_F(LookupTest, AHeadThatMakesNoKeyIsRefusedAndCounted) {
  Open();
  head_.recipe = "";
  EXPECT_EQ(FoundTokens(head_, Prompt(2 * kBlock)), 0u);
  EXPECT_EQ(counters().refused, 1u);
  ExpectCountersAddUp();
}

TEST_F(LookupTest, RefusesWhatLimitsForbid) {
  Open();
  v1::LookupRequest request;
  request.add_prompts()->set_block_hashes(std::string(33, 'x'));
  EXPECT_THAT(Call(request),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("prompt 0 has 33 bytes")));
  request.Clear();
  request.add_prompts()->set_block_hashes(std::string((limits::kLookupBlocksMax + 1) * 32, 'x'));
  EXPECT_THAT(Call(request), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("16384")));
  request.Clear();
  for (uint32_t i = 0; i <= limits::kLookupBatchMax; ++i) request.add_prompts();
  EXPECT_THAT(Call(request), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("256")));
  request.Clear();
  const std::string longest(limits::kLookupBlocksMax * TokenBlockHash::kSize, 'x');
  for (uint64_t bytes = 0; bytes <= limits::kControlMessageBytesMax; bytes += longest.size()) {
    request.add_prompts()->set_block_hashes(longest);
  }
  EXPECT_THAT(Call(request), StatusIs(absl::StatusCode::kInvalidArgument,
                                      HasSubstr("16777216 (lookup_bytes_max)")));
  request.mutable_prompts()->RemoveLast();
  EXPECT_THAT(Call(request), IsOk()) << "as much as is announced";
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::StatsResponse stats, StoreClient(channel_).Stats(Soon()));
  EXPECT_EQ(stats.limits().lookup_bytes_max(), limits::kControlMessageBytesMax);
  request.Clear();
  request.set_candidates_max(limits::kLookupCandidatesMax + 1);
  EXPECT_THAT(Call(request),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("candidates_max 65")));
  request.Clear();
  request.set_min_ratio(1.5);
  EXPECT_THAT(Call(request), StatusIs(absl::StatusCode::kInvalidArgument));
  request.Clear();
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::LookupResponse response, Call(request));
  EXPECT_EQ(response.results_size(), 0);
}

}  // namespace
}  // namespace kvtier
