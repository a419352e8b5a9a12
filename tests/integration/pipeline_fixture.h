// Store, compressor and worker as real processes on free ports, with a tiny model, for tests of the
// whole path. The test starts what it needs; everything dies with it.
#ifndef KVTIER_TESTS_INTEGRATION_PIPELINE_FIXTURE_H_
#define KVTIER_TESTS_INTEGRATION_PIPELINE_FIXTURE_H_

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/client.h"
#include "tests/testing/child_process.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_model.h"

namespace kvtier {

class PipelineTest : public ::testing::Test {
 protected:
  using Ids = std::vector<uint32_t>;

  // Long enough for a loaded machine; a call that takes so long has failed.
  static absl::Time Soon() { return absl::Now() + absl::Seconds(120); }

  static std::unique_ptr<ServerProcess> StartServer(const std::string& binary,
                                                    const std::vector<std::string>& flags) {
    absl::StatusOr<std::unique_ptr<ServerProcess>> server = ServerProcess::Start(binary, flags);
    EXPECT_THAT(server, IsOk());
    return server.ok() ? *std::move(server) : nullptr;
  }

  // The folder of a model called `name`.
  std::string MakeModel(const std::string& name, const TinyModelOptions& options = {}) {
    const absl::StatusOr<std::string> folder = WriteTinyModel(options, dir_.File(name));
    EXPECT_THAT(folder, IsOk());
    return *folder;
  }

  void StartStore(std::vector<std::string> flags = {}) {
    flags.insert(flags.begin(), "--data_dir=" + dir_.File("data"));
    store_ = StartServer("kvtier-store", flags);
    store_channel_ = MakeChannel(store_->address());
    store_client_ = std::make_unique<StoreClient>(store_channel_);
  }
  void StartCompressor(std::vector<std::string> flags = {}) {
    flags.insert(flags.begin(), {"--model=" + model_, "--store=" + store_->address()});
    compressor_ = StartServer("kvtier-compressor", flags);
    compressor_channel_ = MakeChannel(compressor_->address());
    compressor_client_ = std::make_unique<CompressorClient>(compressor_channel_);
  }
  void StartWorker(std::vector<std::string> flags = {}) {
    flags.insert(flags.begin(), {"--model=" + model_, "--store=" + store_->address()});
    worker_ = StartServer("kvtier-worker", flags);
    worker_channel_ = MakeChannel(worker_->address());
    worker_client_ = std::make_unique<WorkerClient>(worker_channel_);
  }

  static Ids RandomIds(size_t count, uint64_t seed) {
    std::mt19937_64 random(seed);
    Ids ids;
    for (size_t i = 0; i < count; ++i) ids.push_back(static_cast<uint32_t>(random() % 256));
    return ids;
  }
  static v1::CompressRequest MakeRequest(const Ids& ids, const std::string& model = "tiny") {
    v1::CompressRequest request;
    request.set_model(model);
    request.mutable_token_ids()->Add(ids.begin(), ids.end());
    return request;
  }
  absl::StatusOr<v1::CompressResult> Compress(const v1::CompressRequest& request) {
    return compressor_client_->Compress(request, nullptr, Soon());
  }

  absl::StatusOr<v1::AttachResponse> Attach(const std::string& key, double ratio,
                                            double min_ratio = 0) {
    v1::AttachRequest request;
    request.mutable_name()->set_key(key);
    request.mutable_extent()->set_ratio(ratio);
    request.mutable_extent()->set_min_ratio(min_ratio);
    return worker_client_->Attach(request, Soon());
  }
  static v1::AskRequest MakeAsk(uint64_t attachment, const Ids& question, uint32_t answer_tokens) {
    v1::AskRequest request;
    request.set_attachment(attachment);
    request.mutable_token_ids()->Add(question.begin(), question.end());
    request.set_answer_tokens_max(answer_tokens);
    return request;
  }
  absl::StatusOr<Ids> Ask(uint64_t attachment, const Ids& question, uint32_t answer_tokens = 16) {
    const absl::StatusOr<WorkerClient::Answer> answer =
        worker_client_->Ask(MakeAsk(attachment, question, answer_tokens), nullptr, Soon());
    if (!answer.ok()) return answer.status();
    return answer->token_ids;
  }

  // The value of `series` ("name" or "name{labels}") on a server's /metrics; -1 if it is not there.
  static double Metric(const ServerProcess& server, absl::string_view series) {
    const absl::StatusOr<std::string> page = HttpGet(server.metrics_port(), "/metrics");
    EXPECT_THAT(page, IsOk());
    for (absl::string_view line : absl::StrSplit(*page, '\n')) {
      double value = 0;
      if (absl::ConsumePrefix(&line, absl::StrCat(series, " ")) && absl::SimpleAtod(line, &value)) {
        return value;
      }
    }
    return -1;
  }
  uint64_t StoredObjects() {
    const absl::StatusOr<v1::StatsResponse> stats = store_client_->Stats(Soon());
    EXPECT_THAT(stats, IsOk());
    return stats->objects();
  }

  TempDir dir_;
  std::string model_ = MakeModel("tiny");
  std::unique_ptr<ServerProcess> store_;
  std::unique_ptr<ServerProcess> compressor_;
  std::unique_ptr<ServerProcess> worker_;
  std::shared_ptr<grpc::Channel> store_channel_;
  std::shared_ptr<grpc::Channel> compressor_channel_;
  std::shared_ptr<grpc::Channel> worker_channel_;
  std::unique_ptr<StoreClient> store_client_;
  std::unique_ptr<CompressorClient> compressor_client_;
  std::unique_ptr<WorkerClient> worker_client_;
};

}  // namespace kvtier

#endif  // KVTIER_TESTS_INTEGRATION_PIPELINE_FIXTURE_H_
