// kill -9 of the real kvtier-store, again and again, under concurrent Put, Delete and Fetch: after
// each restart every object that was acknowledged with DISK is there, byte for byte, every one
// whose removal was acknowledged is not, and what was under way shows its old state or its new one.
//
// KVTIER_TEST_KILLS kills (10 if it is not set; .ci/run asks for 100 of the release binary). The
// seed is printed with a failure; what dies where depends on the machine too.
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/client.h"
#include "tests/testing/child_process.h"
#include "tests/testing/random.h"
#include "tests/testing/segment_sinks.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

absl::Time Soon() { return absl::Now() + absl::Seconds(60); }

int KillsAskedFor() {
  const char* const text = std::getenv("KVTIER_TEST_KILLS");
  int kills = 10;
  KVTIER_CHECK(text == nullptr || absl::SimpleAtoi(text, &kills)) << "KVTIER_TEST_KILLS=" << text;
  return kills;
}

// Sizes differ, from 0.1 to 2 MB.
CompressedObject ObjectOf(uint64_t seed) {
  return MakeTestObject({.layers = 4,
                         .kv_heads = 2,
                         .head_dim = 64,
                         .context_tokens = 50 + static_cast<uint32_t>(seed * 7919 % 900),
                         .seed = seed});
}

// What the answers so far say of an object.
enum class Fate { kPresent, kAbsent, kEither };
using Fates = std::map<uint64_t, Fate>;  // By seed.

// One life of the store.
class Life {
 public:
  explicit Life(const std::string& data_dir) {
    auto store =
        ServerProcess::Start("kvtier-store", {"--data_dir=" + data_dir, "--host_budget_mib=24"});
    KVTIER_CHECK_OK(store);
    store_ = *std::move(store);
    const auto channel = MakeChannel(store_->address());
    client_ = std::make_unique<StoreClient>(channel);
    transport_ = MakeGrpcTransport(channel);
  }

  // OK: it serves exactly this object, whole. NOT_FOUND: it knows nothing of the key.
  absl::Status Check(const CompressedObject& object) {
    FetchRequest request;  // Everything, or nothing.
    request.key = object.manifest->key;
    ComparingSink sink(object);
    return transport_->Fetch(request, Soon(), sink);
  }

  // Puts and deletes objects of its own until the store is dead. `fates` is its alone.
  void Write(uint64_t writer, uint64_t random_seed, Fates* fates, uint64_t* next_seed) {
    std::mt19937_64 random(random_seed);
    constexpr size_t kPresentMax = 8;
    for (;;) {
      std::vector<uint64_t> present;
      for (const auto& [seed, fate] : *fates) {
        if (fate == Fate::kPresent) present.push_back(seed);
      }
      const bool deletes = !present.empty() && (present.size() >= kPresentMax || random() % 3 == 0);
      const uint64_t seed =
          deletes ? present[random() % present.size()] : writer + kWriters * (*next_seed)++;
      const CompressedObject object = ObjectOf(seed);
      const bool for_host = !deletes && random() % 4 == 0;
      (*fates)[seed] = Fate::kEither;
      const absl::Status status =
          deletes ? client_->Delete(object.manifest->key, 0, Soon()).status()
                  : client_
                        ->Put(
                            object, for_host ? v1::DURABILITY_HOST : v1::DURABILITY_DISK,
                            [&](uint64_t) { CountEvent(); }, dead_, Soon())
                        .status();
      if (!status.ok()) break;
      // What only HOST was promised ends with the process, unless it had to go to disk before.
      if (!for_host) (*fates)[seed] = deletes ? Fate::kAbsent : Fate::kPresent;
      last_seed_[writer] = seed;
      CountEvent();
    }
    MutexLock lock(&mutex_);
    ++writers_done_;
    changed_.Signal();
  }

  // Fetches what the writers have just put, until the store is dead.
  void Read(uint64_t random_seed) {
    std::mt19937_64 random(random_seed);
    while (!dead_.cancelled()) {
      const uint64_t seed = last_seed_[random() % kWriters];
      if (seed == 0) continue;
      const absl::Status status = Check(ObjectOf(seed));
      if (absl::IsInternal(status)) {
        ADD_FAILURE() << "object " << seed << ": " << status;
        return;
      }
    }
  }

  // Blocks until so many pieces have been sent and operations answered, and then kills.
  void KillAfter(uint64_t events) {
    {
      MutexLock lock(&mutex_);
      while (events_ < events && writers_done_ < kWriters) changed_.Wait(&mutex_);
      EXPECT_LT(writers_done_, kWriters) << "no writer got through to a living store";
    }
    EXPECT_EQ(store_->Kill().signal, SIGKILL) << store_->output();
    dead_.Cancel();
  }

  static constexpr uint64_t kWriters = 3;

 private:
  void CountEvent() {
    MutexLock lock(&mutex_);
    ++events_;
    changed_.Signal();
  }

  std::unique_ptr<ServerProcess> store_;
  std::unique_ptr<StoreClient> client_;
  std::unique_ptr<Transport> transport_;
  CancelToken dead_;
  std::atomic<uint64_t> last_seed_[kWriters] = {};  // 0: nothing yet.
  Mutex mutex_;
  CondVar changed_;
  uint64_t events_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t writers_done_ ABSL_GUARDED_BY(mutex_) = 0;
};

// Settles what was in doubt.
void VerifyAfterRestart(Life& life, Fates* fates) {
  for (auto& [seed, fate] : *fates) {
    const absl::Status status = life.Check(ObjectOf(seed));
    if (fate == Fate::kPresent) {
      KVTIER_EXPECT_OK(status) << "object " << seed << " was acknowledged";
    } else if (fate == Fate::kAbsent) {
      EXPECT_THAT(status, StatusIs(absl::StatusCode::kNotFound)) << "object " << seed;
    } else {
      EXPECT_TRUE(status.ok() || absl::IsNotFound(status)) << "object " << seed << ": " << status;
      fate = status.ok() ? Fate::kPresent : Fate::kAbsent;
    }
  }
  // Looked at once; from then on only what is there matters.
  std::erase_if(*fates, [](const auto& entry) { return entry.second == Fate::kAbsent; });
}

TEST(StoreKillTest, UnderLoadKeepsWhatItAcknowledged) {
  const uint64_t seed = TestSeed();
  SCOPED_TRACE(SeedTrace(seed));
  std::mt19937_64 random(seed);
  TempDir dir;
  Fates fates[Life::kWriters];
  uint64_t next_seed[Life::kWriters];
  std::fill(std::begin(next_seed), std::end(next_seed), 1);
  const int kills = KillsAskedFor();
  size_t verified = 0;
  for (int kill = 0; kill < kills && !testing::Test::HasFailure(); ++kill) {
    const uint64_t events = RandomUniform(random, 1, 400);
    SCOPED_TRACE(testing::Message() << "kill " << kill << " after " << events << " events");
    Life life(dir.File("data"));
    for (Fates& some : fates) {
      VerifyAfterRestart(life, &some);
      verified += some.size();
    }
    std::vector<std::thread> threads;
    for (uint64_t writer = 0; writer < Life::kWriters; ++writer) {
      threads.emplace_back([&, writer, random_seed = random()] {
        life.Write(writer, random_seed, &fates[writer], &next_seed[writer]);
      });
    }
    threads.emplace_back([&, random_seed = random()] { life.Read(random_seed); });
    life.KillAfter(events);
    for (std::thread& thread : threads) thread.join();
  }
  Life life(dir.File("data"));
  for (Fates& some : fates) {
    VerifyAfterRestart(life, &some);
    verified += some.size();
  }
  KVTIER_LOG(INFO) << kills << " kills, " << verified << " objects verified after them, seed "
                   << seed;
  EXPECT_GT(verified, static_cast<size_t>(kills));
}

// How long a start takes, from the process to the first answer. KVTIER_TEST_REOPEN_MB megabytes (64
// if it is not set).
TEST(StoreKillTest, ReopensWhatIsStored) {
  const char* const text = std::getenv("KVTIER_TEST_REOPEN_MB");
  uint64_t megabytes = 64;
  KVTIER_CHECK(text == nullptr || absl::SimpleAtoi(text, &megabytes))
      << "KVTIER_TEST_REOPEN_MB=" << text;
  TempDir dir;
  std::vector<Key> keys;
  uint64_t bytes = 0;
  const auto start = [&] {
    return ServerProcess::Start("kvtier-store", {"--data_dir=" + dir.File("data")});
  };
  KVTIER_ASSERT_OK_AND_ASSIGN(auto store, start());
  {
    StoreClient client(MakeChannel(store->address()));
    while (bytes < megabytes * 1'000'000) {
      const CompressedObject object = MakeTestObject({.layers = 8,
                                                      .kv_heads = 4,
                                                      .head_dim = 128,
                                                      .context_tokens = 2000,
                                                      .seed = keys.size() + 1});
      KVTIER_ASSERT_OK(
          client.Put(object, v1::DURABILITY_DISK, nullptr, CancelToken(), Soon()).status());
      keys.push_back(object.manifest->key);
      bytes += object.manifest->total_bytes();
    }
  }
  EXPECT_EQ(store->Kill().signal, SIGKILL);
  const absl::Time begin = absl::Now();
  KVTIER_ASSERT_OK_AND_ASSIGN(store, start());
  StoreClient client(MakeChannel(store->address()));
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::StatsResponse stats, client.Stats(Soon()));
  const absl::Duration elapsed = absl::Now() - begin;
  KVTIER_LOG(INFO) << "reopened " << keys.size() << " objects, " << bytes / 1'000'000 << " MB, in "
                   << absl::FormatDuration(elapsed);
  EXPECT_NE(stats.incarnation(), 0u);
  for (const Key& key : keys) {
    KVTIER_EXPECT_OK(client.GetObject(key, Soon())) << key.ToHex();
  }
}

}  // namespace
}  // namespace kvtier
