// The whole path through the real programs: compress once, lose what compressed it, answer from
// what was stored.
#include <signal.h>

#include <algorithm>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include <grpcpp/client_context.h>
#include <grpcpp/impl/codegen/rpc_method.h>

#include "absl/strings/match.h"
#include "compressor/dense_reference.h"
#include "compressor/prompt_profile.h"
#include "kvtier/v1/compressor.grpc.pb.h"
#include "kvtier/v1/worker.grpc.pb.h"
#include "services/frames.h"
#include "services/status_grpc.h"
#include "tests/integration/pipeline_fixture.h"

namespace kvtier {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::Gt;
using ::testing::HasSubstr;
using ::testing::IsSupersetOf;

constexpr double kRatios[] = {1.0, 0.6, 0.3, 0.1};

Key KeyOf(const v1::CompressResult& result) {
  return *Key::FromBytes(absl::string_view(result.object().name().key()));
}

// A Compress call in a thread of its own, that a test can follow and cancel.
class CompressCall {
 public:
  CompressCall(const std::shared_ptr<grpc::Channel>& channel, v1::CompressRequest request)
      : stub_(v1::CompressorService::NewStub(channel)),
        thread_([this, request = std::move(request)] {
          const auto reader = stub_->Compress(&context_, request);
          v1::CompressResponse response;
          while (reader->Read(&response)) {
            const std::lock_guard lock(mutex_);
            if (response.has_progress()) stage_ = std::max(stage_, response.progress().stage());
            if (response.has_result()) result_ = response.result();
            changed_.notify_all();
          }
          const grpc::Status end = reader->Finish();
          const std::lock_guard lock(mutex_);
          end_ = end;
          ended_ = true;
          changed_.notify_all();
        }) {}
  ~CompressCall() {
    context_.TryCancel();
    if (thread_.joinable()) thread_.join();
  }
  void Cancel() { context_.TryCancel(); }
  grpc::StatusCode Code() {
    thread_.join();
    return end_.error_code();
  }
  // False if the call ends before it gets so far.
  bool AwaitStage(v1::CompressStage stage) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return stage_ >= stage || ended_; });
    return stage_ >= stage && !ended_;
  }
  absl::StatusOr<v1::CompressResult> Result() {
    thread_.join();
    if (!end_.ok()) return FromGrpcStatus(end_);
    return result_;
  }

 private:
  const std::unique_ptr<v1::CompressorService::Stub> stub_;
  grpc::ClientContext context_;
  std::mutex mutex_;
  std::condition_variable changed_;
  v1::CompressStage stage_ = v1::COMPRESS_STAGE_UNSPECIFIED;
  bool ended_ = false;
  grpc::Status end_;
  v1::CompressResult result_;
  std::thread thread_;  // Last: it uses everything above.
};

// The first answer to a call of one message, both ends unparsed.
absl::StatusOr<std::string> CallRaw(const std::shared_ptr<grpc::Channel>& channel,
                                    const char* method, const std::string& request) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(60)));
  const grpc::internal::RpcMethod rpc(method, grpc::internal::RpcMethod::BIDI_STREAMING);
  const std::unique_ptr<grpc::ClientReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>> stream(
      grpc::internal::ClientReaderWriterFactory<grpc::ByteBuffer, grpc::ByteBuffer>::Create(
          channel.get(), rpc, &context));
  const grpc::Slice slice(request);
  stream->Write(grpc::ByteBuffer(&slice, 1));
  stream->WritesDone();
  grpc::ByteBuffer answer;
  std::string text;
  if (stream->Read(&answer)) {
    std::vector<grpc::Slice> slices;
    if (answer.Dump(&slices).ok()) {
      for (const grpc::Slice& piece : slices) {
        text.append(reinterpret_cast<const char*>(piece.begin()), piece.size());
      }
    }
  }
  grpc::ByteBuffer more;
  while (stream->Read(&more)) {
  }
  const grpc::Status status = stream->Finish();
  if (!status.ok()) return FromGrpcStatus(status);
  return text;
}

using PipelineProcessTest = PipelineTest;

TEST_F(PipelineProcessTest, AWorkerAnswersFromWhatACrashedCompressorStored) {
  StartStore();
  StartCompressor();
  const v1::CompressRequest request = MakeRequest(RandomIds(500, 1));
  std::vector<v1::CompressStage> stages;
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::CompressResult result,
                              compressor_client_->Compress(
                                  request,
                                  [&](const v1::CompressProgress& progress) {
                                    if (progress.stage() != v1::COMPRESS_STAGE_QUEUED) {
                                      EXPECT_LE(progress.done(), progress.total());
                                    }
                                    stages.push_back(progress.stage());
                                  },
                                  Soon()));
  EXPECT_TRUE(result.computed());
  EXPECT_TRUE(std::is_sorted(stages.begin(), stages.end()));
  EXPECT_THAT(stages, IsSupersetOf({v1::COMPRESS_STAGE_QUEUED, v1::COMPRESS_STAGE_UPLOAD}));
  EXPECT_EQ(result.object().context_tokens(), 500);
  EXPECT_EQ(result.object().system_tokens(), 3);
  EXPECT_EQ(result.object().resident_bands(), 6);
  EXPECT_EQ(result.object().durability(), v1::DURABILITY_DISK);
  EXPECT_GT(result.timings().scoring_seconds(), 0);

  EXPECT_EQ(store_->Kill().signal, SIGKILL);
  EXPECT_EQ(compressor_->Kill().signal, SIGKILL);
  StartStore();
  StartWorker();
  uint64_t bytes_before = UINT64_MAX;
  for (const double ratio : kRatios) {
    SCOPED_TRACE(ratio);
    KVTIER_ASSERT_OK_AND_ASSIGN(const v1::AttachResponse attached,
                                Attach(result.object().name().key(), ratio));
    EXPECT_EQ(attached.ratio_millionths(), std::lround(ratio * 1e6));
    EXPECT_LT(attached.bytes(), bytes_before);
    EXPECT_GT(attached.fetch_seconds(), 0);
    EXPECT_EQ(attached.prefilled_context_tokens(), 0);
    bytes_before = attached.bytes();
    KVTIER_ASSERT_OK_AND_ASSIGN(const Ids answer, Ask(attached.attachment(), RandomIds(10, 7), 16));
    EXPECT_EQ(answer.size(), 16);
    EXPECT_THAT(Ask(attached.attachment(), RandomIds(10, 7), 16), IsOkAndHolds(answer));
  }
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::GetWorkerResponse state, worker_client_->GetWorker(Soon()));
  EXPECT_EQ(state.attachments_size(), 4);
  EXPECT_EQ(state.prefilled_context_tokens(), 0);
  EXPECT_EQ(Metric(*worker_, "kvtier_worker_prefilled_context_tokens_total"), 0);
  EXPECT_EQ(Metric(*worker_, "kvtier_worker_attached_objects"), 4);
  EXPECT_EQ(Metric(*worker_, "kvtier_worker_questions_total"), 8);
}

TEST_F(PipelineProcessTest, AWorkerOnTheStoresHostAnswersFromTheStoresMemory) {
  const std::string socket = dir_.File("shm");
  StartStore({"--shm_socket=" + socket});
  StartCompressor();
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::CompressResult result,
                              Compress(MakeRequest(RandomIds(300, 1))));
  const std::string& key = result.object().name().key();
  StartWorker();
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::AttachResponse copied, Attach(key, 0.6));
  KVTIER_ASSERT_OK_AND_ASSIGN(const Ids expected, Ask(copied.attachment(), RandomIds(10, 7)));

  StartWorker({"--store_shm=" + socket});
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::AttachResponse mapped, Attach(key, 0.6));
  EXPECT_EQ(mapped.bytes(), copied.bytes());
  EXPECT_THAT(Ask(mapped.attachment(), RandomIds(10, 7)), IsOkAndHolds(expected));
  EXPECT_EQ(Metric(*store_, "kvtier_store_leases"), 1);
  EXPECT_EQ(Metric(*store_, "kvtier_store_shm_bytes_total"), mapped.bytes());
  EXPECT_EQ(Metric(*worker_, "kvtier_worker_shm_fallbacks_total"), 0);

  // A store without a socket, or none at all there: the worker fetches as before.
  StartWorker({"--store_shm=" + dir_.File("nobody")});
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::AttachResponse fallen_back, Attach(key, 0.6));
  EXPECT_THAT(Ask(fallen_back.attachment(), RandomIds(10, 7)), IsOkAndHolds(expected));
  EXPECT_EQ(Metric(*worker_, "kvtier_worker_shm_fallbacks_total"), 1);
}

TEST_F(PipelineProcessTest, CompressingAgainReturnsWhatIsStored) {
  StartStore();
  StartCompressor();
  const v1::CompressRequest request = MakeRequest(RandomIds(200, 1));
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::CompressResult first, Compress(request));
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::CompressResult second, Compress(request));
  EXPECT_TRUE(first.computed());
  EXPECT_FALSE(second.computed());
  EXPECT_EQ(second.manifest(), first.manifest());
  EXPECT_EQ(second.timings().prefill_seconds(), 0);
  EXPECT_EQ(Metric(*compressor_, "kvtier_compress_computed_total"), 1);
  EXPECT_EQ(Metric(*compressor_, "kvtier_compress_already_stored_total"), 1);
  EXPECT_EQ(Metric(*compressor_, "kvtier_compress_context_tokens_total"), 200);
  // A key is of tokens: another compressor over the same store finds the same object.
  StartCompressor();
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::CompressResult third, Compress(request));
  EXPECT_FALSE(third.computed());
  EXPECT_EQ(third.manifest(), first.manifest());
}

TEST_F(PipelineProcessTest, ConcurrentCallsForOneKeyShareOneComputation) {
  StartStore();
  StartCompressor();
  const v1::CompressRequest request = MakeRequest(RandomIds(1500, 1));
  CompressCall first(compressor_channel_, request);
  CompressCall second(compressor_channel_, request);
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::CompressResult a, first.Result());
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::CompressResult b, second.Result());
  EXPECT_EQ(a.manifest(), b.manifest());
  EXPECT_EQ(a.object().name().upload_id(), b.object().name().upload_id());
  EXPECT_EQ(Metric(*compressor_, "kvtier_compress_computed_total"), 1);
  EXPECT_EQ(StoredObjects(), 1);
}

TEST_F(PipelineProcessTest, AnswersAtRatioOneEqualTheDenseDecoder) {
  StartStore();
  StartCompressor({"--kv_dtype=f32"});
  const Ids context = RandomIds(400, 1);
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::CompressResult result, Compress(MakeRequest(context)));
  StartWorker();
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::AttachResponse attached,
                              Attach(result.object().name().key(), 1));

  KVTIER_ASSERT_OK_AND_ASSIGN(const auto dense, DenseReferenceDecoder::Create(model_, DType::kF32));
  KVTIER_ASSERT_OK_AND_ASSIGN(const PromptProfile profile,
                              PromptProfile::Load(model_ + "/kvtier_prompt_profile.json"));
  Ids whole = profile.prefix;
  whole.insert(whole.end(), context.begin(), context.end());
  KVTIER_ASSERT_OK(dense->Prefill(whole));
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    SCOPED_TRACE(seed);
    const Ids question = RandomIds(1 + 3 * seed, seed);
    KVTIER_ASSERT_OK_AND_ASSIGN(const Ids expected, dense->Answer(profile.WrapQuery(question), 16));
    EXPECT_THAT(Ask(attached.attachment(), question, 16), IsOkAndHolds(expected));
  }
}

TEST_F(PipelineProcessTest, ParallelAnswersEqualSerialAnswers) {
  StartStore();
  StartCompressor();
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::CompressResult result,
                              Compress(MakeRequest(RandomIds(500, 1))));
  StartWorker();
  std::vector<uint64_t> attachments;
  for (const double ratio : kRatios) {
    KVTIER_ASSERT_OK_AND_ASSIGN(const v1::AttachResponse attached,
                                Attach(result.object().name().key(), ratio));
    attachments.push_back(attached.attachment());
  }
  struct Case {
    uint64_t attachment;
    Ids question;
    Ids serial;
    absl::StatusOr<Ids> parallel;
  };
  std::vector<Case> cases;
  for (uint64_t i = 0; i < 16; ++i) {
    Case c{attachments[i % attachments.size()], RandomIds(5 + i, i), {}, absl::UnknownError("")};
    KVTIER_ASSERT_OK_AND_ASSIGN(c.serial, Ask(c.attachment, c.question, 12));
    cases.push_back(std::move(c));
  }
  std::vector<std::thread> threads;
  for (Case& c : cases) {
    threads.emplace_back([this, &c] { c.parallel = Ask(c.attachment, c.question, 12); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Case& c : cases) EXPECT_THAT(c.parallel, IsOkAndHolds(c.serial));
}

TEST_F(PipelineProcessTest, AttachingTwiceSharesOneCacheAndDetachesTwice) {
  StartStore();
  StartCompressor();
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::CompressResult result,
                              Compress(MakeRequest(RandomIds(100, 1))));
  StartWorker();
  const std::string key = result.object().name().key();
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::AttachResponse first, Attach(key, 0.3));
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::AttachResponse second, Attach(key, 0.25));  // Same edge.
  EXPECT_EQ(second.attachment(), first.attachment());
  EXPECT_EQ(second.fetch_seconds(), 0);
  EXPECT_EQ(Metric(*worker_, "kvtier_worker_fetched_bytes_total"),
            static_cast<double>(first.bytes()));
  KVTIER_EXPECT_OK(worker_client_->Detach(first.attachment(), Soon()));
  KVTIER_EXPECT_OK(Ask(first.attachment(), {1, 2, 3}));
  KVTIER_EXPECT_OK(worker_client_->Detach(first.attachment(), Soon()));
  EXPECT_THAT(Ask(first.attachment(), {1, 2, 3}), StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(PipelineProcessTest, StopIdsAndSeedsDecideAnswers) {
  StartStore();
  StartCompressor();
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::CompressResult result,
                              Compress(MakeRequest(RandomIds(100, 1))));
  StartWorker();
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::AttachResponse attached,
                              Attach(result.object().name().key(), 1));
  v1::AskRequest request = MakeAsk(attached.attachment(), {1, 2, 3}, 12);
  KVTIER_ASSERT_OK_AND_ASSIGN(const WorkerClient::Answer greedy,
                              worker_client_->Ask(request, nullptr, Soon()));
  EXPECT_EQ(greedy.finish.reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(greedy.finish.answer_tokens(), 12);

  const uint32_t stop = greedy.token_ids[5];
  const auto end = std::find(greedy.token_ids.begin(), greedy.token_ids.end(), stop);
  request.add_stop_ids(stop);
  KVTIER_ASSERT_OK_AND_ASSIGN(const WorkerClient::Answer stopped,
                              worker_client_->Ask(request, nullptr, Soon()));
  EXPECT_EQ(stopped.finish.reason(), v1::FINISH_REASON_STOP_ID);
  EXPECT_EQ(stopped.token_ids, Ids(greedy.token_ids.begin(), end));

  request.clear_stop_ids();
  request.set_temperature(5);
  request.set_seed(1);
  KVTIER_ASSERT_OK_AND_ASSIGN(const WorkerClient::Answer drawn,
                              worker_client_->Ask(request, nullptr, Soon()));
  KVTIER_ASSERT_OK_AND_ASSIGN(const WorkerClient::Answer again,
                              worker_client_->Ask(request, nullptr, Soon()));
  request.set_seed(2);
  KVTIER_ASSERT_OK_AND_ASSIGN(const WorkerClient::Answer other,
                              worker_client_->Ask(request, nullptr, Soon()));
  EXPECT_EQ(drawn.token_ids, again.token_ids);
  EXPECT_NE(drawn.token_ids, other.token_ids);
}

TEST_F(PipelineProcessTest, SystemIdsAreProtectedAndInTheKey) {
  StartStore();
  StartCompressor();
  const Ids context = RandomIds(200, 1);
  v1::CompressRequest request = MakeRequest(context);
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::CompressResult standard, Compress(request));
  request.mutable_system();  // Present and empty: no system prompt.
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::CompressResult none, Compress(request));
  const Ids system = RandomIds(20, 2);
  request.mutable_system()->mutable_token_ids()->Add(system.begin(), system.end());
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::CompressResult own, Compress(request));
  EXPECT_NE(KeyOf(standard), KeyOf(none));
  EXPECT_NE(KeyOf(standard), KeyOf(own));
  EXPECT_NE(KeyOf(none), KeyOf(own));
  EXPECT_EQ(none.object().system_tokens(), 0);
  EXPECT_EQ(own.object().system_tokens(), 20);
  EXPECT_EQ(own.object().context_tokens(), 200);

  const std::unique_ptr<Transport> transport = MakeGrpcTransport(store_channel_);
  FetchRequest fetch;
  fetch.key = KeyOf(own);
  fetch.ratio = fetch.min_ratio = *Ratio::FromDouble(0.1);
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto cache, FetchRaggedCache(*transport, fetch, Soon()));
  const Geometry& geometry = cache->geometry();
  for (uint32_t layer = 0; layer < geometry.layer_count(); ++layer) {
    for (uint32_t head = 0; head < geometry.kv_heads; ++head) {
      size_t kept = 0;
      for (const RowSpan& span : cache->spans(LayerIndex(layer), head)) {
        kept += static_cast<size_t>(std::count_if(span.positions, span.positions + span.rows,
                                                  [](uint32_t p) { return p < 20; }));
      }
      EXPECT_EQ(kept, 20) << "layer " << layer << " head " << head;
    }
  }
}

TEST_F(PipelineProcessTest, CompressingAgainRestoresADegradedObjectUnderItsReaders) {
  StartStore();
  StartCompressor();
  v1::CompressRequest request = MakeRequest(RandomIds(300, 1));
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::CompressResult first, Compress(request));
  const std::string key = first.object().name().key();
  StartWorker();
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::AttachResponse old_whole, Attach(key, 1));
  const Ids question = RandomIds(10, 3);
  KVTIER_ASSERT_OK_AND_ASSIGN(const Ids answer, Ask(old_whole.attachment(), question));

  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::DeleteResponse left,
                              store_client_->Delete(KeyOf(first), 0.3, Soon()));
  EXPECT_EQ(left.object().resident_bands(), 3);
  // What is given up is a miss, or less, as the reader says.
  EXPECT_THAT(Attach(key, 1), StatusIs(absl::StatusCode::kNotFound));
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::AttachResponse less, Attach(key, 1, 0.2));
  EXPECT_EQ(less.ratio_millionths(), 300'000);

  // Good enough for who wants less; computed anew for who wants all.
  request.set_min_ratio(0.3);
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::CompressResult enough, Compress(request));
  EXPECT_FALSE(enough.computed());
  EXPECT_EQ(enough.object().resident_bands(), 3);
  request.set_min_ratio(0);
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::CompressResult second, Compress(request));
  EXPECT_TRUE(second.computed());
  EXPECT_EQ(KeyOf(second), KeyOf(first));
  EXPECT_EQ(second.object().resident_bands(), 6);
  EXPECT_NE(second.object().name().upload_id(), first.object().name().upload_id());
  EXPECT_EQ(StoredObjects(), 1);

  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::AttachResponse new_whole, Attach(key, 1));
  EXPECT_NE(new_whole.attachment(), old_whole.attachment());
  EXPECT_THAT(Ask(old_whole.attachment(), question), IsOkAndHolds(answer));
  EXPECT_THAT(Ask(new_whole.attachment(), question), IsOkAndHolds(answer));
  // A reader that names the upload it started with is told that it is gone.
  v1::AttachRequest stale;
  *stale.mutable_name() = first.object().name();
  EXPECT_THAT(worker_client_->Attach(stale, Soon()), StatusIs(absl::StatusCode::kAborted));
}

// A model that computes for many seconds, so that a test can act meanwhile.
class SlowModelTest : public PipelineTest {
 protected:
  void SetUp() override {
    model_ = MakeModel("slow", {.hidden = 256,
                                .layers = 8,
                                .q_heads = 8,
                                .kv_heads = 2,
                                .head_dim = 64,
                                .intermediate = 512,
                                .positions_max = 16384});
    StartStore();
  }
  v1::CompressRequest SlowRequest(uint64_t seed) {
    return MakeRequest(RandomIds(12'000, seed), "slow");
  }
};

TEST_F(SlowModelTest, AFullQueueRefusesAndACancelledCallGivesItsPlaceBack) {
  StartCompressor({"--queue_max=1"});
  CompressCall running(compressor_channel_, SlowRequest(1));
  ASSERT_TRUE(running.AwaitStage(v1::COMPRESS_STAGE_PREFILL));
  CompressCall waiting(compressor_channel_, SlowRequest(2));
  ASSERT_TRUE(waiting.AwaitStage(v1::COMPRESS_STAGE_QUEUED));
  const absl::Status refused = Compress(SlowRequest(3)).status();
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kResourceExhausted,
                                HasSubstr("the queue is full: 1 contexts wait")));
  EXPECT_EQ(RetryAfter(refused), absl::Seconds(2));
  EXPECT_EQ(Metric(*compressor_, "kvtier_compress_refused_total"), 1);
  EXPECT_EQ(Metric(*compressor_, "kvtier_compress_queue_length"), 1);
  EXPECT_GT(Metric(*compressor_, "kvtier_compress_memory_reserved_bytes"), 0);

  running.Cancel();
  waiting.Cancel();
  EXPECT_EQ(running.Code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(waiting.Code(), grpc::StatusCode::CANCELLED);
  // Once the place is free, which takes the server a moment, a small context gets it.
  absl::StatusOr<v1::CompressResult> small;
  do {
    small = Compress(MakeRequest(RandomIds(100, 4), "slow"));
  } while (absl::IsResourceExhausted(small.status()));
  KVTIER_ASSERT_OK(small);
  EXPECT_EQ(Metric(*compressor_, "kvtier_compress_cancelled_total"), 2);
  EXPECT_EQ(Metric(*compressor_, "kvtier_compress_computed_total"), 1);
  EXPECT_EQ(StoredObjects(), 1);
}

TEST_F(SlowModelTest, SigtermCancelsRunningComputationsAndDrains) {
  StartCompressor();
  CompressCall running(compressor_channel_, SlowRequest(1));
  ASSERT_TRUE(running.AwaitStage(v1::COMPRESS_STAGE_PREFILL));
  CompressCall waiting(compressor_channel_, SlowRequest(2));
  ASSERT_TRUE(waiting.AwaitStage(v1::COMPRESS_STAGE_QUEUED));
  KVTIER_ASSERT_OK_AND_ASSIGN(const ExitStatus exit, compressor_->Stop());
  EXPECT_EQ(exit.exit_code, 0) << compressor_->output();
  for (CompressCall* call : {&running, &waiting}) {
    EXPECT_THAT(call->Result(),
                StatusIs(absl::StatusCode::kUnavailable, HasSubstr("shutting down")));
  }
  EXPECT_EQ(StoredObjects(), 0);
}

TEST_F(SlowModelTest, AQuestionThatRunsAtSigtermIsAnswered) {
  StartCompressor();
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::CompressResult result,
                              Compress(MakeRequest(RandomIds(100, 1), "slow")));
  StartWorker({"--drain_timeout=100s"});
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::AttachResponse attached,
                              Attach(result.object().name().key(), 1));
  size_t tokens = 0;
  const absl::StatusOr<WorkerClient::Answer> answer = worker_client_->Ask(
      MakeAsk(attached.attachment(), {1, 2, 3}, 200),
      [&](std::span<const uint32_t>) {
        if (++tokens == 2) worker_->process().Signal(SIGTERM);
      },
      Soon());
  KVTIER_ASSERT_OK(answer);
  EXPECT_EQ(answer->token_ids.size(), 200);
  KVTIER_ASSERT_OK_AND_ASSIGN(const ExitStatus exit, worker_->process().Wait(absl::Seconds(60)));
  EXPECT_EQ(exit.exit_code, 0) << worker_->output();
}

TEST_F(PipelineProcessTest, EveryServerAnswersHealthReflectionAndMetrics) {
  StartStore();
  StartCompressor();
  StartWorker();
  const struct {
    const ServerProcess& server;
    std::shared_ptr<grpc::Channel> channel;
    const char* service;
  } servers[] = {{*store_, store_channel_, "kvtier.v1.StoreService"},
                 {*compressor_, compressor_channel_, "kvtier.v1.CompressorService"},
                 {*worker_, worker_channel_, "kvtier.v1.WorkerService"}};
  for (const auto& [server, channel, service] : servers) {
    SCOPED_TRACE(service);
    // HealthCheckResponse{status: SERVING}
    EXPECT_THAT(CallRaw(channel, "/grpc.health.v1.Health/Check", ""), IsOkAndHolds("\x08\x01"));
    // ServerReflectionRequest{list_services: "*"}
    const absl::StatusOr<std::string> services = CallRaw(
        channel, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "\x3a\x01*");
    EXPECT_THAT(services,
                IsOkAndHolds(AllOf(HasSubstr(service), HasSubstr("grpc.health.v1.Health"))));
    // Prometheus' text format: every line is a comment or "series value".
    KVTIER_ASSERT_OK_AND_ASSIGN(const std::string page, HttpGet(server.metrics_port(), "/metrics"));
    size_t series = 0;
    for (const absl::string_view line : absl::StrSplit(page, '\n', absl::SkipEmpty())) {
      if (absl::StartsWith(line, "# HELP ") || absl::StartsWith(line, "# TYPE ")) continue;
      const size_t space = line.rfind(' ');
      ASSERT_NE(space, absl::string_view::npos) << line;
      double value = 0;
      EXPECT_TRUE(absl::SimpleAtod(line.substr(space + 1), &value)) << line;
      EXPECT_TRUE(absl::StartsWith(line, "kvtier_") || absl::StartsWith(line, "exposer_")) << line;
      ++series;
    }
    EXPECT_GT(series, 10);
  }
}

TEST_F(PipelineProcessTest, EveryServerEndsCleanlyAtSigterm) {
  StartStore();
  StartCompressor();
  StartWorker();
  KVTIER_ASSERT_OK(Compress(MakeRequest(RandomIds(100, 1))));
  for (ServerProcess* server : {worker_.get(), compressor_.get(), store_.get()}) {
    KVTIER_ASSERT_OK_AND_ASSIGN(const ExitStatus exit, server->Stop());
    EXPECT_EQ(exit.exit_code, 0) << server->output();
    EXPECT_THAT(server->output(), HasSubstr("stopped"));
  }
}

}  // namespace
}  // namespace kvtier
