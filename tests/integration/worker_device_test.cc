// A worker that computes on a (played) GPU: what is attached lies in the GPU's memory, bounded, and
// is answered from there as a worker on the CPU answers.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status_matchers.h"
#include "compressor/decode_step.h"
#include "compressor/model.h"
#include "compressor/pipeline.h"
#include "compressor/reference_backend.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/client.h"
#include "services/metrics.h"
#include "services/server.h"
#include "services/store_service.h"
#include "services/worker_service.h"
#include "tests/testing/fake_device_backend.h"
#include "tests/testing/local_server.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_model.h"

namespace kvtier {
namespace {

using ::absl::StatusCode;
using ::testing::AllOf;
using ::testing::HasSubstr;

absl::Time Soon() { return absl::Now() + absl::Minutes(2); }

// A worker on `backend`, which fetches from the store behind `channel`.
class Worker {
 public:
  Worker(const std::string& folder, Backend& backend, const std::shared_ptr<grpc::Channel>& channel,
         uint64_t bytes_max = 0)
      : model_(*Model::Load(folder, backend)),
        transport_(MakeGrpcTransport(channel)),
        store_(channel),
        service_({.attachments = {.bytes_max = bytes_max}}, *model_, *transport_, store_, metrics_,
                 Clock::Real()),
        server_(StartLocalServer({&service_}, metrics_)),
        client_(ChannelTo(*server_)) {}

  absl::StatusOr<v1::AttachResponse> Attach(const Key& key, double ratio) {
    v1::AttachRequest request;
    request.mutable_name()->set_key(std::string(key.AsStringView()));
    request.mutable_extent()->set_ratio(ratio);
    return client_.Attach(request, Soon());
  }
  absl::StatusOr<std::vector<uint32_t>> Ask(uint64_t attachment) {
    v1::AskRequest request;
    request.set_attachment(attachment);
    for (uint32_t i = 0; i < 10; ++i) request.add_token_ids(i * 31 % 250);
    request.set_answer_tokens_max(8);
    KVTIER_ASSIGN_OR_RETURN(const WorkerClient::Answer answer,
                            client_.Ask(request, nullptr, Soon()));
    return answer.token_ids;
  }
  absl::Status Detach(uint64_t attachment) { return client_.Detach(attachment, Soon()); }
  Metrics& metrics() { return metrics_; }

 private:
  Metrics metrics_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Transport> transport_;
  StoreClient store_;
  WorkerService service_;
  std::unique_ptr<Server> server_;
  WorkerClient client_;
};

class WorkerDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    store_ = *OpenTestStore("", uint64_t{256} << 20, Clock::Real());
    store_service_ = MakeStoreService({}, *store_, metrics_, Clock::Real());
    store_server_ = StartLocalServer({store_service_.get()}, metrics_);
    channel_ = ChannelTo(*store_server_);
    KVTIER_ASSERT_OK_AND_ASSIGN(folder_, WriteTinyModel({}, dir_.File("tiny")));
    object_ = Store("int8", 1);
  }

  // Compresses a context on the host and stores it.
  CompressedObject Store(const std::string& codec, uint32_t seed) {
    const std::unique_ptr<Model> model = *Model::Load(folder_, *host_);
    std::vector<uint32_t> context;
    for (uint32_t i = 0; i < 200; ++i) context.push_back((i * 7 + seed) % 250);
    CompressInput input;
    input.context = context;
    input.codec = codec;
    auto object = Pipeline(*model, {}).Compress(input, nullptr, CancelToken());
    KVTIER_CHECK_OK(object);
    KVTIER_EXPECT_OK(
        StoreClient(channel_).Put(*object, v1::DURABILITY_HOST, nullptr, CancelToken(), Soon()));
    return *std::move(object);
  }

  TempDir dir_;
  Metrics metrics_;
  std::unique_ptr<TieredStore> store_;
  std::unique_ptr<grpc::Service> store_service_;
  std::unique_ptr<Server> store_server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::string folder_;
  std::unique_ptr<Backend> host_ = MakeReferenceBackend();
  CompressedObject object_;
};

TEST_F(WorkerDeviceTest, AnswersFromTheDevicesMemoryAsAWorkerOnTheCpu) {
  FakeDeviceBackend device("cuda:0");
  Worker on_cpu(folder_, *host_, channel_);
  Worker on_device(folder_, device, channel_);
  const uint64_t weights = device.live_bytes();
  for (const double ratio : {0.1, 0.3, 1.0}) {
    SCOPED_TRACE(ratio);
    KVTIER_ASSERT_OK_AND_ASSIGN(const v1::AttachResponse expected,
                                on_cpu.Attach(object_.manifest->key, ratio));
    const uint64_t uploaded = device.uploaded_bytes();
    KVTIER_ASSERT_OK_AND_ASSIGN(const v1::AttachResponse attached,
                                on_device.Attach(object_.manifest->key, ratio));
    EXPECT_EQ(attached.bytes(), expected.bytes());
    EXPECT_EQ(device.uploaded_bytes() - uploaded, attached.bytes());
    EXPECT_EQ(device.live_bytes() - weights, attached.bytes());
    KVTIER_ASSERT_OK_AND_ASSIGN(const std::vector<uint32_t> answer,
                                on_cpu.Ask(expected.attachment()));
    EXPECT_EQ(answer.size(), 8u);
    EXPECT_THAT(on_device.Ask(attached.attachment()), IsOkAndHolds(answer));
    EXPECT_THAT(on_device.Ask(attached.attachment()), IsOkAndHolds(answer));
    // Questions bring no bytes of the object over again, only what they need themselves.
    EXPECT_EQ(device.live_bytes() - weights, attached.bytes());
    KVTIER_EXPECT_OK(on_device.Detach(attached.attachment()));
    EXPECT_EQ(device.live_bytes(), weights);
  }
  EXPECT_EQ(on_device.metrics().worker_prefilled_context_tokens.Value(), 0);
}

// Steps that compute nothing: of a question of a step or more, all but the first are replayed, and
// one attempt to capture was refused.
class CountingSteps final : public DecodeSteps {
 public:
  absl::StatusOr<std::shared_ptr<const PreparedRows>> Prepare(
      const std::vector<HeadSpans>& /*layers*/, DType /*dtype*/) override {
    return std::make_shared<PreparedRows>();
  }
  absl::StatusOr<std::unique_ptr<DecodeStep>> Create(const DecodeStepSpec& /*spec*/) override {
    return std::make_unique<Step>();
  }

 private:
  class Step final : public DecodeStep {
   public:
    absl::Status Run(const StepState& /*state*/,
                     absl::FunctionRef<absl::Status()> /*pass*/) override {
      ++(counts_.launched == 0 ? counts_.launched : counts_.replayed);
      counts_.captures_refused = 1;
      return absl::OkStatus();
    }
    StepCounts counts() const override { return counts_; }

    absl::Status Embed(const TensorView& /*table*/, float /*scale*/, TensorView /*y*/) override {
      return Never();
    }
    absl::Status Linear(TensorView /*x*/, const LinearWeights& /*weights*/,
                        TensorView /*y*/) override {
      return Never();
    }
    absl::Status Rope(TensorView /*x*/, int64_t /*heads*/, const RopeTable& /*table*/) override {
      return Never();
    }
    absl::Status AppendKv(int64_t /*layer*/, TensorView /*k*/, TensorView /*v*/) override {
      return Never();
    }
    absl::Status Attention(int64_t /*layer*/, TensorView /*q*/, TensorView /*out*/) override {
      return Never();
    }

   private:
    static absl::Status Never() { return absl::InternalError("no pass is run"); }
    StepCounts counts_;
  };
};

TEST_F(WorkerDeviceTest, CountsHowStepsRan) {
  CountingSteps steps;
  FakeDeviceBackend device("cuda:0");
  device.Offer(&steps);
  Worker worker(folder_, device, channel_);
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::AttachResponse attached,
                              worker.Attach(object_.manifest->key, 1));
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::vector<uint32_t> answer,
                              worker.Ask(attached.attachment()));
  ASSERT_EQ(answer.size(), 8u);
  // The question in one pass gives the first token of the answer, each step one more.
  EXPECT_EQ(worker.metrics().worker_steps_launched.Value(), 1);
  EXPECT_EQ(worker.metrics().worker_steps_replayed.Value(), 6);
  EXPECT_EQ(worker.metrics().worker_step_captures_refused.Value(), 1);
}

TEST_F(WorkerDeviceTest, RefusesMoreThanItMayKeepOnTheDevice) {
  const CompressedObject other = Store("int8", 2);
  FakeDeviceBackend device("cuda:0");
  const uint64_t limit =
      std::max(object_.manifest->total_bytes(), other.manifest->total_bytes()) + 100;
  Worker worker(folder_, device, channel_, limit);
  const uint64_t weights = device.live_bytes();
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::AttachResponse attached,
                              worker.Attach(object_.manifest->key, 1));
  EXPECT_THAT(worker.Attach(other.manifest->key, 1),
              StatusIs(StatusCode::kResourceExhausted, AllOf(HasSubstr("this worker's limit of"),
                                                             HasSubstr(std::to_string(limit)))));
  EXPECT_EQ(device.live_bytes() - weights, attached.bytes());
  KVTIER_EXPECT_OK(worker.Ask(attached.attachment()));
  KVTIER_EXPECT_OK(worker.Detach(attached.attachment()));
  KVTIER_EXPECT_OK(worker.Attach(other.manifest->key, 1));
}

TEST_F(WorkerDeviceTest, SaysWhenTheDeviceItselfHasNoRoom) {
  FakeDeviceBackend probe("cuda:0");
  const std::unique_ptr<Model> model = *Model::Load(folder_, probe);
  // Room for the model and less than the object.
  FakeDeviceBackend device("cuda:0", probe.live_bytes() + object_.manifest->total_bytes() - 1);
  Worker worker(folder_, device, channel_);
  const uint64_t weights = device.live_bytes();
  EXPECT_THAT(worker.Attach(object_.manifest->key, 1),
              StatusIs(StatusCode::kResourceExhausted, HasSubstr("cuda:0")));
  EXPECT_EQ(device.live_bytes(), weights);
  // Lower bands fit.
  KVTIER_EXPECT_OK(worker.Attach(object_.manifest->key, 0.1));
}

TEST_F(WorkerDeviceTest, ADeviceThatIsLostAttachesNothing) {
  FakeDeviceBackend device("cuda:0");
  Worker worker(folder_, device, channel_);
  const uint64_t weights = device.live_bytes();
  device.Break();
  EXPECT_THAT(worker.Attach(object_.manifest->key, 1),
              StatusIs(StatusCode::kInternal, HasSubstr("lost")));
  EXPECT_EQ(device.live_bytes(), weights);
  EXPECT_EQ(worker.metrics().worker_attached_objects.Value(), 0);
}

}  // namespace
}  // namespace kvtier
