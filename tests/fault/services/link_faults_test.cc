// Death and silence at every step of a transfer, on either side: each step of the communicators,
// and each message of the stream. Whatever happens the worker gets its bytes, from the store where
// the link fails, and no communicator is used again after a failure.
#include <chrono>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/simulated_clock.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvtier/v1/link.grpc.pb.h"
#include "services/proto_convert.h"
#include "services/status_grpc.h"
#include "tests/fault/services/link_testing.h"

namespace kvtier {
namespace {

using ::absl::StatusCode;
using ::testing::HasSubstr;
using Fault = FakeCommunicatorFactory::Fault;

CompressedObject SmallObject() { return MakeTestObject({.layers = 3, .kv_heads = 4}); }

// Sender, worker and store with one object, on a clock that stands still.
struct Pair {
  explicit Pair(const CompressedObject& object)
      : links(clock), sender(links, clock), worker(links, clock, sender.Connect(), object) {
    KVTIER_CHECK_OK(sender.tier.Insert(TenantId(), object));
  }
  absl::Status Fetch(const CompressedObject& object) {
    CheckingSink sink(object, {0, object.manifest->geometry.kv_heads});
    const absl::Status status =
        worker.transport->Fetch(WholeObject(object), absl::InfiniteFuture(), sink);
    if (status.ok()) sink.ExpectWhole();
    return status;
  }
  // Nothing is pinned any more: what is removed is free.
  void ExpectNothingPinned(const CompressedObject& object) {
    worker.transport.reset();
    sender.server->Shutdown();  // Waits for the calls.
    sender.tier.Remove(TenantId(), object.manifest->key);
    EXPECT_EQ(sender.tier.usage().bytes, 0u);
  }

  SimulatedClock clock;
  FakeLinks links;
  LinkSenderWorld sender;
  LinkWorkerWorld worker;
};

// The steps of one clean first transfer on each side.
struct Steps {
  int sender = 0;
  int worker = 0;
};
Steps CountSteps(const CompressedObject& object) {
  Pair pair(object);
  KVTIER_EXPECT_OK(pair.Fetch(object));
  EXPECT_EQ(pair.worker.store.fetches(), 0);
  // Both ends have every kind of step, so that all kinds are tried below.
  for (const char* step : {"id", "create", "start", "send", "end", "wait"}) {
    EXPECT_THAT(pair.sender.communicators.steps_taken(), HasSubstr(step));
  }
  for (const char* step : {"create", "start", "receive", "end", "wait"}) {
    EXPECT_THAT(pair.worker.communicators.steps_taken(), HasSubstr(step));
  }
  return {pair.sender.communicators.steps(), pair.worker.communicators.steps()};
}

class LinkFaultTest : public testing::TestWithParam<bool> {
 protected:
  static bool at_sender() { return GetParam(); }
  FakeCommunicatorFactory& Victim(Pair& pair) {
    return at_sender() ? pair.sender.communicators : pair.worker.communicators;
  }
  // After the fault: the same two ends do it over the link again, with a new communicator.
  void ExpectRecovers(Pair& pair, const CompressedObject& object, int store_fetches) {
    Victim(pair).FailAt(0, Fault::kDie);
    const int made = pair.links.groups_made();
    KVTIER_EXPECT_OK(pair.Fetch(object));
    EXPECT_EQ(pair.worker.store.fetches(), store_fetches) << "it came over the link";
    EXPECT_EQ(pair.links.groups_made(), made + 1);
    KVTIER_EXPECT_OK(pair.Fetch(object));
    EXPECT_EQ(pair.links.groups_made(), made + 1) << "which is kept";
    EXPECT_EQ(pair.links.uses_after_failure(), 0);
    EXPECT_EQ(pair.worker.counters.received, 2u);
    pair.ExpectNothingPinned(object);
  }
};

TEST_P(LinkFaultTest, DeathAtEveryStepOfACommunicator) {
  const CompressedObject object = SmallObject();
  const Steps steps = CountSteps(object);
  const int last = at_sender() ? steps.sender : steps.worker;
  ASSERT_GT(last, 8);
  for (int step = 1; step <= last; ++step) {
    SCOPED_TRACE(testing::Message() << "step " << step << " of " << last);
    Pair pair(object);
    Victim(pair).FailAt(step, Fault::kDie);
    KVTIER_EXPECT_OK(pair.Fetch(object));
    // The sender's last two steps wait for what it has handed over, which may arrive all the same.
    const bool fell_back = pair.worker.counters.fallback_failures == 1u;
    EXPECT_TRUE(fell_back || (at_sender() && step >= last - 1));
    EXPECT_EQ(pair.worker.store.fetches(), fell_back ? 1 : 0);
    if (!fell_back) continue;
    ExpectRecovers(pair, object, 1);
  }
}

TEST_P(LinkFaultTest, SilenceAtEveryStepOfACommunicator) {
  const CompressedObject object = SmallObject();
  const Steps steps = CountSteps(object);
  const int last = at_sender() ? steps.sender : steps.worker;
  for (int step = 1; step <= last; ++step) {
    SCOPED_TRACE(testing::Message() << "step " << step << " of " << last);
    if (at_sender() && step == 1) continue;  // Making an id talks to nobody.
    Pair pair(object);
    Victim(pair).FailAt(step, Fault::kHang);
    std::thread fetch([&] { KVTIER_EXPECT_OK(pair.Fetch(object)); });
    pair.links.AwaitHanging();
    pair.clock.AdvanceTime(absl::Minutes(3));
    fetch.join();
    const bool fell_back = pair.worker.counters.fallback_failures == 1u;
    EXPECT_TRUE(fell_back || (at_sender() && step >= last - 1));
    if (!fell_back) continue;
    ExpectRecovers(pair, object, 1);
  }
}

INSTANTIATE_TEST_SUITE_P(Link, LinkFaultTest, testing::Bool(), [](const auto& test) {
  return std::string(test.param ? "Sender" : "Worker");
});

// --- The worker's side of the stream, played by hand
// ----------------------------------------------

using ClientStream = grpc::ClientReaderWriter<v1::TransferRequest, v1::TransferResponse>;

v1::TransferRequest JoinOf(const CompressedObject& object, const std::string& group) {
  v1::TransferRequest request;
  v1::LinkJoin& join = *request.mutable_join();
  join.set_group(group);
  join.set_ranks(1);
  join.set_member_id(std::string(16, 'm'));
  *join.mutable_fetch() = FetchRequestToProto(WholeObject(object));
  return request;
}

TEST(LinkStreamTest, AWorkerThatDiesAfterAnyMessageCostsItsTransferAlone) {
  const CompressedObject object = SmallObject();
  // 0: nothing sent; 1: joined; 2: header read; 3: ready sent; 4: go read. (After go the sender is
  // making the communicator, which this worker never joins.)
  for (int stage = 0; stage <= 4; ++stage) {
    SCOPED_TRACE(stage);
    Pair pair(object);
    {
      grpc::ClientContext context;
      context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Minutes(5)));
      const auto stub = v1::LinkService::NewStub(pair.sender.Connect());
      const auto stream = stub->Transfer(&context);
      v1::TransferRequest request = JoinOf(object, "dies");
      v1::TransferResponse response;
      if (stage >= 1) {
        ASSERT_TRUE(stream->Write(request));
      }
      if (stage >= 2) {
        ASSERT_TRUE(stream->Read(&response));
        EXPECT_TRUE(response.has_header());
      }
      request.mutable_ready();
      if (stage >= 3) {
        ASSERT_TRUE(stream->Write(request));
      }
      if (stage >= 4) {
        ASSERT_TRUE(stream->Read(&response));
        EXPECT_FALSE(response.go().unique_id().empty());
        EXPECT_EQ(response.go().epoch(), 1u);
      }
      context.TryCancel();
      EXPECT_FALSE(stream->Finish().ok());
    }
    // Others are served meanwhile and afterwards.
    KVTIER_EXPECT_OK(pair.Fetch(object));
    EXPECT_EQ(pair.worker.store.fetches(), 0);
    pair.ExpectNothingPinned(object);
    EXPECT_EQ(pair.sender.counters.sent, 1u);
    EXPECT_LE(pair.sender.counters.send_failures, 1u);
    if (stage >= 2) {
      EXPECT_EQ(pair.sender.counters.send_failures, 1u);
    }
  }
}

TEST(LinkStreamTest, TheSameGroupGoesOnWithANewEpochAfterAFailure) {
  const CompressedObject object = SmallObject();
  Pair pair(object);
  const auto stub = v1::LinkService::NewStub(pair.sender.Connect());
  std::string last_id;
  for (uint64_t epoch = 1; epoch <= 3; ++epoch) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Minutes(5)));
    const auto stream = stub->Transfer(&context);
    v1::TransferRequest request = JoinOf(object, "again");
    v1::TransferResponse response;
    ASSERT_TRUE(stream->Write(request));
    ASSERT_TRUE(stream->Read(&response));
    request.mutable_ready();
    ASSERT_TRUE(stream->Write(request));
    ASSERT_TRUE(stream->Read(&response));
    EXPECT_EQ(response.go().epoch(), epoch);
    EXPECT_NE(response.go().unique_id(), last_id);
    last_id = response.go().unique_id();
    context.TryCancel();
    EXPECT_FALSE(stream->Finish().ok());
  }
}

// One stream that stays at the step to which it was taken.
class HeldStream {
 public:
  HeldStream(Pair& pair, const CompressedObject& object, const std::string& group, uint32_t ranks)
      : stub_(v1::LinkService::NewStub(pair.sender.Connect())) {
    context_.set_deadline(absl::ToChronoTime(absl::Now() + absl::Minutes(9)));
    stream_ = stub_->Transfer(&context_);
    v1::TransferRequest request = JoinOf(object, group);
    request.mutable_join()->set_ranks(ranks);
    EXPECT_TRUE(stream_->Write(request));
  }
  void ReadHeader() {
    v1::TransferResponse response;
    EXPECT_TRUE(stream_->Read(&response));
    EXPECT_TRUE(response.has_header());
  }
  void SayReady() {
    v1::TransferRequest request;
    request.mutable_ready();
    EXPECT_TRUE(stream_->Write(request));
  }
  void ReadGo() {
    v1::TransferResponse response;
    EXPECT_TRUE(stream_->Read(&response));
    EXPECT_TRUE(response.has_go());
  }
  void Cancel() { context_.TryCancel(); }
  // Blocks until the sender has ended it.
  absl::Status Finish() { return FromGrpcStatus(stream_->Finish()); }

 private:
  const std::unique_ptr<v1::LinkService::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<ClientStream> stream_;
};

TEST(LinkStreamTest, StopEndsTransfersAtEveryStep) {
  const CompressedObject object = SmallObject();
  Pair pair(object);
  HeldStream gathering(pair, object, "of two", 2);
  HeldStream silent(pair, object, "silent", 1);
  silent.ReadHeader();
  HeldStream sending(pair, object, "busy", 1);
  sending.ReadHeader();
  sending.SayReady();
  sending.ReadGo();
  HeldStream waiting(pair, object, "busy", 1);
  waiting.ReadHeader();
  waiting.SayReady();
  // The first for its other rank, the last for its turn.
  pair.clock.AwaitWaiters(2);
  pair.sender.sender.Stop(absl::UnavailableError("stopping"));
  EXPECT_THAT(gathering.Finish(), StatusIs(StatusCode::kUnavailable, HasSubstr("stopping")));
  EXPECT_THAT(waiting.Finish(), StatusIs(StatusCode::kUnavailable, HasSubstr("stopping")));
  EXPECT_FALSE(silent.Finish().ok());
  EXPECT_FALSE(sending.Finish().ok());
  KVTIER_EXPECT_OK(pair.Fetch(object));
  EXPECT_EQ(pair.worker.store.fetches(), 1);
  pair.ExpectNothingPinned(object);
  EXPECT_EQ(pair.sender.counters.send_failures, 4u);
}

TEST(LinkStreamTest, ACallerThatGoesWhileItWaitsLetsGoOfTheObject) {
  const CompressedObject object = SmallObject();
  Pair pair(object);
  HeldStream gathering(pair, object, "of two", 2);
  pair.clock.AwaitWaiters(1);
  pair.sender.tier.Remove(TenantId(), object.manifest->key);
  ASSERT_GT(pair.sender.tier.usage().bytes, 0u) << "pinned";
  gathering.Cancel();
  // Waits for the call, which must end long before its deadline, 9 minutes: 5 are too late here.
  const auto ended = std::async(std::launch::async, [&] { pair.sender.server->Shutdown(); });
  bool is_over = false;
  for (int i = 0; i < 3000 && !is_over; ++i) {
    pair.clock.AdvanceTime(limits::kLinkCancelPoll);
    is_over = ended.wait_for(std::chrono::milliseconds(10)) == std::future_status::ready;
  }
  EXPECT_TRUE(is_over);
  pair.clock.AdvanceTime(absl::Minutes(10));  // So that this test ends in any case.
  ended.wait();
  EXPECT_EQ(pair.sender.tier.usage().bytes, 0u);
  EXPECT_FALSE(gathering.Finish().ok());
}

TEST(LinkStreamTest, ARankThatNeverSaysDoneLosesItsTurn) {
  const CompressedObject object = SmallObject();
  Pair pair(object);
  // Has everything, and stays in its sink. Its own time is longer than a turn's.
  LinkWorkerWorld silent(pair.links, pair.clock, pair.sender.Connect(), object,
                         {.group = "same", .timeout = absl::Minutes(9)});
  const auto last_band = static_cast<uint32_t>(object.manifest->bands.size()) - 1;
  std::promise<void> reached, release;
  CheckingSink sink(object, {0, 4});
  sink.on_segment = [&](BandIndex band, LayerIndex layer) -> absl::Status {
    if (layer.value() == 2 && band.value() == last_band) {
      reached.set_value();
      release.get_future().wait();
    }
    return absl::OkStatus();
  };
  std::thread fetch([&] {
    KVTIER_EXPECT_OK(silent.transport->Fetch(WholeObject(object), absl::InfiniteFuture(), sink));
  });
  reached.get_future().wait();
  pair.clock.AwaitWaiters(1);  // The sender's thread.
  pair.clock.AdvanceTime(absl::Minutes(3));
  // Its group goes on without it: this one's turn comes when the other's has been taken away.
  LinkWorkerWorld next(pair.links, pair.clock, pair.sender.Connect(), object, {.group = "same"});
  CheckingSink next_sink(object, {0, 4});
  KVTIER_EXPECT_OK(next.transport->Fetch(WholeObject(object), absl::InfiniteFuture(), next_sink));
  EXPECT_EQ(next.counters.received, 1u);
  release.set_value();
  fetch.join();
  sink.ExpectWhole();
  pair.ExpectNothingPinned(object);
  EXPECT_EQ(pair.sender.counters.send_failures, 1u);
}

TEST(LinkStreamTest, MessagesThatDoNotFollowTheProtocolAreRefused) {
  const CompressedObject object = SmallObject();
  Pair pair(object);
  const auto stub = v1::LinkService::NewStub(pair.sender.Connect());
  const auto refusal = [&](const std::vector<v1::TransferRequest>& messages,
                           absl::Duration timeout = absl::Minutes(5)) {
    grpc::ClientContext context;
    if (timeout != absl::InfiniteDuration()) {
      context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
    }
    const auto stream = stub->Transfer(&context);
    for (const v1::TransferRequest& message : messages) {
      if (!stream->Write(message)) break;
    }
    stream->WritesDone();
    v1::TransferResponse response;
    while (stream->Read(&response)) {
    }
    return FromGrpcStatus(stream->Finish());
  };
  const v1::TransferRequest good = JoinOf(object, "g");
  v1::TransferRequest ready, done;
  ready.mutable_ready();
  done.mutable_done();
  EXPECT_THAT(refusal({}), StatusIs(StatusCode::kInvalidArgument, HasSubstr("join")));
  EXPECT_THAT(refusal({ready}), StatusIs(StatusCode::kInvalidArgument, HasSubstr("join")));
  EXPECT_THAT(refusal({good, good}), StatusIs(StatusCode::kInvalidArgument, HasSubstr("ready")));
  EXPECT_THAT(refusal({good, done}), StatusIs(StatusCode::kInvalidArgument, HasSubstr("ready")));
  EXPECT_THAT(refusal({good}), StatusIs(StatusCode::kUnavailable, HasSubstr("ready")));
  EXPECT_THAT(refusal({good, ready, ready}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("done")));
  EXPECT_THAT(refusal({good}, absl::InfiniteDuration()),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("deadline")));
  EXPECT_THAT(refusal({good}, absl::Minutes(11)),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("deadline")));
  const auto changed = [&](const std::function<void(v1::LinkJoin&)>& change) {
    v1::TransferRequest request = good;
    change(*request.mutable_join());
    return refusal({request});
  };
  EXPECT_THAT(changed([](auto& join) { join.set_rank(1); }),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("rank 1 of 1")));
  EXPECT_THAT(changed([](auto& join) { join.set_ranks(0); }),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("rank 0 of 0")));
  EXPECT_THAT(changed([](auto& join) { join.set_ranks(65); }),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("64")));
  EXPECT_THAT(changed([](auto& join) { join.set_group(""); }),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("name")));
  EXPECT_THAT(changed([](auto& join) { join.set_group(std::string(257, 'g')); }),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("256")));
  EXPECT_THAT(changed([](auto& join) { join.set_member_id("short"); }),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("member_id")));
  EXPECT_THAT(changed([](auto& join) { join.mutable_fetch()->mutable_name()->set_key("x"); }),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("key")));
  EXPECT_THAT(changed([](auto& join) {
                join.mutable_fetch()->mutable_name()->set_key(std::string(32, 'k'));
              }),
              StatusIs(StatusCode::kNotFound));
  pair.ExpectNothingPinned(object);
}

TEST(LinkStreamTest, NoMoreCallsThanTheLimit) {
  const CompressedObject object = SmallObject();
  SimulatedClock clock;
  FakeLinks links(clock);
  LinkSenderWorld sender(links, clock, {.calls_max = 0});
  LinkWorkerWorld worker(links, clock, sender.Connect(), object);
  CheckingSink sink(object, {0, 4});
  KVTIER_EXPECT_OK(worker.transport->Fetch(WholeObject(object), absl::InfiniteFuture(), sink));
  sink.ExpectWhole();
  EXPECT_EQ(worker.counters.fallback_failures, 1u);
  EXPECT_EQ(worker.store.fetches(), 1);
}

// --- The sender's side of the stream, played by hand
// ----------------------------------------------

// Sends what it is told to and then ends the call, or goes silent until it is cancelled.
class ScriptedSender final : public v1::LinkService::Service {
 public:
  grpc::Status Transfer(
      grpc::ServerContext* /*context*/,
      grpc::ServerReaderWriter<v1::TransferResponse, v1::TransferRequest>* stream) override {
    v1::TransferRequest request;
    for (const v1::TransferResponse& response : script) {
      if (!stream->Read(&request)) break;  // Join, ready.
      if (!stream->Write(response)) break;
    }
    if (is_silent) {
      while (stream->Read(&request)) {
      }
    }
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "dies here");
  }

  std::vector<v1::TransferResponse> script;
  bool is_silent = false;
};

class ScriptedSenderTest : public testing::Test {
 protected:
  ScriptedSenderTest() {
    server_ = StartLocalServer({&sender_}, metrics_);
    v1::LinkHeader& header = *header_.mutable_header();
    header.set_manifest(EncodeManifest(*object_.manifest));
    header.set_band_count(6);
    header.set_payload_bytes(object_.manifest->total_bytes());
    header.set_mode(v1::LINK_MODE_SEND);
    go_.mutable_go()->set_epoch(1);
    go_.mutable_go()->set_unique_id("nobody makes this one");
  }
  // Whatever the sender does, the worker has its bytes from the store, once.
  void ExpectFallsBack() {
    LinkWorkerWorld worker(links_, clock_, ChannelTo(*server_), object_, {.timeout = timeout_});
    CheckingSink sink(object_, {0, 4});
    KVTIER_EXPECT_OK(worker.transport->Fetch(WholeObject(object_), absl::InfiniteFuture(), sink));
    sink.ExpectWhole();
    EXPECT_EQ(worker.store.fetches(), 1);
    EXPECT_EQ(worker.counters.fallback_failures, 1u);
    EXPECT_EQ(links_.groups_made(), 0);
  }

  const CompressedObject object_ = SmallObject();
  FakeLinks links_{Clock::Real()};
  Clock& clock_ = Clock::Real();
  absl::Duration timeout_ = absl::Seconds(30);
  Metrics metrics_;
  ScriptedSender sender_;
  v1::TransferResponse header_;
  v1::TransferResponse go_;
  std::unique_ptr<Server> server_;
};

TEST_F(ScriptedSenderTest, ASenderThatDiesAfterAnyMessage) {
  for (const auto& script :
       std::vector<std::vector<v1::TransferResponse>>{{}, {header_}, {header_, go_}}) {
    SCOPED_TRACE(script.size());
    sender_.script = script;
    ExpectFallsBack();
  }
}

TEST_F(ScriptedSenderTest, ASenderThatIsSilentAfterAnyMessage) {
  sender_.is_silent = true;
  timeout_ = absl::Milliseconds(300);
  for (const auto& script :
       std::vector<std::vector<v1::TransferResponse>>{{}, {header_}, {header_, go_}}) {
    SCOPED_TRACE(script.size());
    sender_.script = script;
    ExpectFallsBack();
  }
}

TEST_F(ScriptedSenderTest, ASenderThatTalksNonsense) {
  sender_.is_silent = true;  // It would like the worker to wait.
  const auto with = [&](const std::function<void(v1::LinkHeader&)>& change) {
    v1::TransferResponse response = header_;
    change(*response.mutable_header());
    return std::vector<v1::TransferResponse>{response};
  };
  v1::TransferResponse unknown_epoch = go_, long_id = go_;
  unknown_epoch.mutable_go()->clear_unique_id();
  long_id.mutable_go()->set_unique_id(std::string(5000, 'x'));
  const CompressedObject other = MakeTestObject({.seed = 9});
  const std::vector<std::vector<v1::TransferResponse>> scripts = {
      {v1::TransferResponse()},
      {go_},
      {header_, header_},
      {header_, unknown_epoch},
      {header_, long_id},
      with([](auto& header) { header.set_manifest("none"); }),
      with([&](auto& header) { header.set_manifest(EncodeManifest(*other.manifest)); }),
      with([](auto& header) { header.set_band_count(7); }),
      with([](auto& header) { header.set_band_count(0); }),
      with([](auto& header) { header.set_payload_bytes(1); }),
      with([](auto& header) { header.clear_mode(); }),
  };
  for (size_t i = 0; i < scripts.size(); ++i) {
    SCOPED_TRACE(i);
    sender_.script = scripts[i];
    ExpectFallsBack();
  }
}

TEST_F(ScriptedSenderTest, ASenderThatIsNotThere) {
  server_->Shutdown();
  ExpectFallsBack();
}

}  // namespace
}  // namespace kvtier
