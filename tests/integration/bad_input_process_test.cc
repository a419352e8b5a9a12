// What the programs refuse: each with its code, with a message that names the thing and the limit,
// and with nothing half-stored.
#include <cmath>
#include <filesystem>
#include <limits>

#include "services/status_grpc.h"
#include "tests/integration/pipeline_fixture.h"
#include "tests/testing/files.h"
#include "tests/testing/paths.h"

namespace kvtier {
namespace {

using absl::StatusCode;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
// An address at which nobody listens: port 1 is never given to a test.
constexpr char kNobody[] = "127.0.0.1:1";

class CompressBadInputTest : public PipelineTest {
 protected:
  void SetUp() override { StartStore(); }
  // Nothing of what was refused is in the store, and the compressor goes on.
  void TearDown() override {
    if (store_ == nullptr || compressor_ == nullptr) return;
    EXPECT_EQ(StoredObjects(), 0);
    KVTIER_EXPECT_OK(compressor_client_->ListModels(Soon()));
  }
};

TEST_F(CompressBadInputTest, Contexts) {
  StartCompressor();
  EXPECT_THAT(Compress(MakeRequest({})),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("context is empty")));
  EXPECT_THAT(Compress(MakeRequest({1, 2, 264, 3})),
              StatusIs(StatusCode::kInvalidArgument, AllOf(HasSubstr("264"), HasSubstr("2"))));
  EXPECT_THAT(Compress(MakeRequest({UINT32_MAX})),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("4294967295")));
  // The context alone has positions; with the repeat pass it does not.
  EXPECT_THAT(Compress(MakeRequest(RandomIds(4090, 1))),
              StatusIs(StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("4090 of the context"), HasSubstr("has 4096"))));
  v1::CompressRequest request = MakeRequest({1, 2, 3});
  request.mutable_system()->add_token_ids(999);
  EXPECT_THAT(Compress(request), StatusIs(StatusCode::kInvalidArgument,
                                          AllOf(HasSubstr("system prompt"), HasSubstr("999"))));
}

TEST_F(CompressBadInputTest, TheServersOwnLimitIsNamedAndListed) {
  StartCompressor({"--context_tokens_max=100"});
  EXPECT_THAT(Compress(MakeRequest(RandomIds(101, 1))),
              StatusIs(StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("101 tokens"), HasSubstr("at most 100"))));
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::ListModelsResponse models,
                              compressor_client_->ListModels(Soon()));
  EXPECT_EQ(models.models(0).context_tokens_max(), 100);
}

TEST_F(CompressBadInputTest, TheListedLongestContextIsExact) {
  StartCompressor({"--queue_max=0"});  // What passes the checks is refused before it is computed.
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::ListModelsResponse models,
                              compressor_client_->ListModels(Soon()));
  const uint64_t longest = models.models(0).context_tokens_max();
  EXPECT_THAT(Compress(MakeRequest(RandomIds(longest, 1))),
              StatusIs(StatusCode::kResourceExhausted));
  EXPECT_THAT(Compress(MakeRequest(RandomIds(longest + 1, 1))),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("positions")));
}

TEST_F(CompressBadInputTest, NamesAndRatios) {
  StartCompressor();
  EXPECT_THAT(Compress(MakeRequest({1}, "llama")),
              StatusIs(StatusCode::kNotFound, AllOf(HasSubstr("'llama'"), HasSubstr("has tiny"))));
  v1::CompressRequest request = MakeRequest({1, 2, 3});
  request.set_recipe("magic");
  EXPECT_THAT(Compress(request), StatusIs(StatusCode::kInvalidArgument, HasSubstr("magic")));
  request.clear_recipe();
  for (const double ratio : {-0.1, 1.5, 1e-9, kNan, double{INFINITY}}) {
    SCOPED_TRACE(ratio);
    request.set_min_ratio(ratio);
    EXPECT_THAT(Compress(request), StatusIs(StatusCode::kInvalidArgument, HasSubstr("(0, 1]")));
  }
}

TEST_F(CompressBadInputTest, AKeyThatTheServerDoesNotCompute) {
  StartCompressor();
  v1::CompressRequest request = MakeRequest({1, 2, 3});
  for (const std::string& key : {std::string(32, 'x'), std::string("short")}) {
    request.set_expected_key(key);
    EXPECT_THAT(Compress(request), StatusIs(StatusCode::kInvalidArgument,
                                            HasSubstr("expected_key differs from the key")));
  }
}

TEST_F(CompressBadInputTest, MoreMemoryThanTheBudget) {
  StartCompressor({"--memory_budget_mib=1"});
  const absl::Status refused = Compress(MakeRequest(RandomIds(3000, 1))).status();
  EXPECT_THAT(refused, StatusIs(StatusCode::kResourceExhausted,
                                AllOf(HasSubstr("needs about"), HasSubstr("budget of 1048576"))));
  EXPECT_FALSE(RetryAfter(refused).has_value());  // Waiting cannot help.
}

TEST_F(CompressBadInputTest, AStoreThatCannotBeReached) {
  StartCompressor({std::string("--store=") + kNobody});
  EXPECT_THAT(Compress(MakeRequest({1, 2, 3})), StatusIs(StatusCode::kUnavailable));
  // One that goes away is the same, and one that comes back is used again.
  const std::string address = store_->address();
  StartCompressor();
  EXPECT_TRUE(store_->Kill().signal != 0);
  EXPECT_THAT(Compress(MakeRequest({1, 2, 3})), StatusIs(StatusCode::kUnavailable));
  StartStore({"--listen=" + address});
  absl::StatusOr<v1::CompressResult> result;
  do {  // The connection backs off for a moment.
    result = Compress(MakeRequest({1, 2, 3}));
  } while (absl::IsUnavailable(result.status()));
  KVTIER_ASSERT_OK(result);
  KVTIER_EXPECT_OK(store_client_->Delete(
      *Key::FromBytes(absl::string_view(result->object().name().key())), 0, Soon()));
}

TEST_F(CompressBadInputTest, DiskDurabilityOfAStoreWithoutDisk) {
  store_ = StartServer("kvtier-store", {});
  store_client_ = std::make_unique<StoreClient>(MakeChannel(store_->address()));
  StartCompressor();
  v1::CompressRequest request = MakeRequest({1, 2, 3});
  request.set_durability(v1::DURABILITY_DISK);
  EXPECT_THAT(Compress(request), StatusIs(StatusCode::kFailedPrecondition));
}

TEST_F(CompressBadInputTest, AStoreTooSmallForTheObject) {
  store_ = StartServer("kvtier-store", {"--host_budget_mib=1"});
  store_client_ = std::make_unique<StoreClient>(MakeChannel(store_->address()));
  StartCompressor();
  // 3,003 rows x 2 layers x 2 heads x 32 x 2 x bf16 are 1.5 MiB.
  EXPECT_THAT(Compress(MakeRequest(RandomIds(3000, 1))), StatusIs(StatusCode::kResourceExhausted));
}

class WorkerBadInputTest : public PipelineTest {
 protected:
  // A stored object of 200 tokens.
  void SetUp() override {
    StartStore();
    StartCompressor();
    const absl::StatusOr<v1::CompressResult> result = Compress(MakeRequest(RandomIds(200, 1)));
    KVTIER_ASSERT_OK(result);
    key_ = result->object().name().key();
  }
  // What was refused has left the worker as it was.
  void TearDown() override {
    if (worker_ == nullptr) return;
    const absl::StatusOr<v1::GetWorkerResponse> state = worker_client_->GetWorker(Soon());
    KVTIER_ASSERT_OK(state);
    for (const v1::AttachmentSummary& attachment : state->attachments()) {
      EXPECT_EQ(attachment.running_asks(), 0);
    }
  }
  std::string key_;
};

TEST_F(WorkerBadInputTest, Attaches) {
  StartWorker();
  for (const double ratio : {-0.1, 1.5, kNan}) {
    SCOPED_TRACE(ratio);
    EXPECT_THAT(Attach(key_, ratio), StatusIs(StatusCode::kInvalidArgument, HasSubstr("(0, 1]")));
    EXPECT_THAT(Attach(key_, 1, ratio),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr("(0, 1]")));
  }
  EXPECT_THAT(Attach(key_, 0.3, 0.6), StatusIs(StatusCode::kInvalidArgument));
  EXPECT_THAT(Attach("short", 1), StatusIs(StatusCode::kInvalidArgument));
  EXPECT_THAT(Attach("", 1), StatusIs(StatusCode::kInvalidArgument));
  EXPECT_THAT(Attach(std::string(32, 'x'), 1), StatusIs(StatusCode::kNotFound));
  v1::AttachRequest request;
  request.mutable_name()->set_key(key_);
  request.mutable_name()->set_upload_id(std::string(16, 'x'));
  EXPECT_THAT(worker_client_->Attach(request, Soon()), StatusIs(StatusCode::kAborted));
  request.mutable_name()->set_upload_id("short");
  EXPECT_THAT(worker_client_->Attach(request, Soon()), StatusIs(StatusCode::kInvalidArgument));
  request.mutable_name()->clear_upload_id();
  request.mutable_extent()->set_bytes_max(10);  // Not even band 0.
  EXPECT_THAT(worker_client_->Attach(request, Soon()), StatusIs(StatusCode::kNotFound));
  EXPECT_EQ(Metric(*worker_, "kvtier_worker_attached_objects"), 0);
}

TEST_F(WorkerBadInputTest, AnotherModelOrPromptProfile) {
  model_ = MakeModel("other", {.seed = 2});
  StartWorker();
  EXPECT_THAT(Attach(key_, 1),
              StatusIs(StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr("'tiny'"), HasSubstr("'other'"), HasSubstr("digest"))));
  model_ = MakeModel("reworded", {.chunk_tokens = 65});
  StartWorker();
  EXPECT_THAT(Attach(key_, 1),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("prompt profile")));
}

TEST_F(WorkerBadInputTest, ObjectsBeyondItsMemory) {
  StartWorker({"--attached_mib_max=1"});
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::CompressResult large,
                              Compress(MakeRequest(RandomIds(3000, 2))));
  EXPECT_THAT(Attach(large.object().name().key(), 1),
              StatusIs(StatusCode::kResourceExhausted, HasSubstr("limit of 1048576")));
  KVTIER_EXPECT_OK(Attach(large.object().name().key(), 0.3));
  EXPECT_THAT(Attach(large.object().name().key(), 0.6), StatusIs(StatusCode::kResourceExhausted));
}

TEST_F(WorkerBadInputTest, Questions) {
  StartWorker({"--tail_tokens_max=50"});
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::AttachResponse attached, Attach(key_, 1));
  const uint64_t id = attached.attachment();
  EXPECT_THAT(Ask(id + 1, {1}), StatusIs(StatusCode::kNotFound, HasSubstr("no attachment")));
  EXPECT_THAT(worker_client_->Detach(id + 1, Soon()), StatusIs(StatusCode::kNotFound));
  EXPECT_THAT(Ask(id, {264}), StatusIs(StatusCode::kInvalidArgument, HasSubstr("264")));
  EXPECT_THAT(Ask(id, {1}, 0), StatusIs(StatusCode::kInvalidArgument, HasSubstr("[1, 4096]")));
  EXPECT_THAT(Ask(id, {1}, 4097), StatusIs(StatusCode::kInvalidArgument, HasSubstr("[1, 4096]")));
  EXPECT_THAT(Ask(id, RandomIds(40, 1), 20),
              StatusIs(StatusCode::kResourceExhausted, HasSubstr("limit of 50")));
  EXPECT_THAT(Ask(id, {1}, 100),
              StatusIs(StatusCode::kResourceExhausted, HasSubstr("limit of 50")));

  v1::AskRequest request = MakeAsk(id, {}, 5);
  request.set_raw(true);
  EXPECT_THAT(worker_client_->Ask(request, nullptr, Soon()),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("no tokens")));
  request = MakeAsk(id, {1}, 5);
  for (const double temperature : {-1.0, 101.0, kNan}) {
    SCOPED_TRACE(temperature);
    request.set_temperature(temperature);
    EXPECT_THAT(worker_client_->Ask(request, nullptr, Soon()),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr("temperature")));
  }
  request.clear_temperature();
  for (int i = 0; i < 17; ++i) request.add_stop_ids(1);
  EXPECT_THAT(worker_client_->Ask(request, nullptr, Soon()),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("at most 16")));
  KVTIER_EXPECT_OK(Ask(id, {1}, 10));
  EXPECT_EQ(Metric(*worker_, "kvtier_worker_asks_refused_total"), 2);
}

TEST_F(WorkerBadInputTest, QuestionsPastTheModelsPositions) {
  StartWorker({"--tail_tokens_max=8000"});
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::AttachResponse attached, Attach(key_, 1));
  EXPECT_THAT(Ask(attached.attachment(), {1}, 4096),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("has 4096")));
}

TEST_F(WorkerBadInputTest, AStoreThatCannotBeReached) {
  StartWorker({std::string("--store=") + kNobody});
  EXPECT_THAT(Attach(key_, 1), StatusIs(StatusCode::kUnavailable));
}

TEST_F(WorkerBadInputTest, WhatIsAttachedOutlivesTheStore) {
  StartWorker();
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::AttachResponse attached, Attach(key_, 0.3));
  EXPECT_TRUE(store_->Kill().signal != 0);
  KVTIER_EXPECT_OK(Ask(attached.attachment(), {1, 2, 3}));
  EXPECT_THAT(Attach(key_, 1), StatusIs(StatusCode::kUnavailable));
}

// A program that cannot start says why, and ends with 1, or with 2 when the command line is wrong.
TEST_F(PipelineTest, ProgramsThatCannotStartSayWhy) {
  const struct {
    const char* program;
    std::vector<std::string> flags;
    int exit_code;
    std::vector<std::string> words;
  } cases[] = {
      {"kvtier-compressor", {}, 1, {"--model"}},
      {"kvtier-compressor", {"--model=" + dir_.File("nowhere")}, 1, {"nowhere"}},
      {"kvtier-compressor", {"--model=" + model_, "--kv_dtype=int3"}, 1, {"int3"}},
      {"kvtier-compressor", {"--model=" + model_, "--device=gpu"}, 1, {"gpu", "cpu", "cuda:N"}},
      {"kvtier-compressor", {"--model=" + model_, "--compressions_max=0"}, 1, {"at least 1"}},
      {"kvtier-compressor", {"--model=" + model_ + "," + model_}, 1, {"two folders", "tiny"}},
      {"kvtier-worker", {"--model=" + model_ + "," + MakeModel("b")}, 1, {"one model"}},
      {"kvtier-worker", {"--nonsense"}, 2, {"--nonsense is no flag", "--help"}},
      {"kvtier-worker", {"--threads=many"}, 2, {"--threads=many"}},
      {"kvtier-worker", {"stray"}, 2, {"stray"}},
      {"kvtier-store", {"--log_level=loud"}, 2, {"loud"}},
      {"kvtier-store", {"--shm_socket_mode=432"}, 2, {"--shm_socket_mode=432", "0432 (octal)"}},
      {"kvtier-store", {"--shm_socket_mode=rw"}, 2, {"--shm_socket_mode=rw", "octal digits"}},
  };
  for (const auto& [program, flags, exit_code, words] : cases) {
    SCOPED_TRACE(testing::Message() << program << " " << testing::PrintToString(flags));
    const std::string output = dir_.File("output");
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto process, ChildProcess::Start(ProgramPath(program), flags,
                                                                        {.output_file = output}));
    KVTIER_ASSERT_OK_AND_ASSIGN(const ExitStatus exit, process->Wait(absl::Seconds(50)));
    EXPECT_EQ(exit.exit_code, exit_code);
    const std::string text = ReadFile(output);
    for (const std::string& word : words) EXPECT_THAT(text, HasSubstr(word));
    std::filesystem::remove(output);
  }
}

}  // namespace
}  // namespace kvtier
