// WorkerService: the reference worker. Fetches objects through a Transport into the memory of the
// model's backend, answers questions with one Decoder each. It never computes a context's keys and
// values: Decoder knows no way to.
#ifndef KVTIER_SERVICES_WORKER_SERVICE_H_
#define KVTIER_SERVICES_WORKER_SERVICE_H_

#include <memory>

#include "base/clock.h"
#include "base/limits.h"
#include "compressor/model.h"
#include "kvcache/transport.h"
#include "kvtier/v1/worker.grpc.pb.h"
#include "services/attachments.h"
#include "services/client.h"
#include "services/drain_signal.h"
#include "services/metrics.h"

namespace kvtier {

// Thread-safe. Owns neither model, transport, store client, metrics nor clock; all must outlive it.
class WorkerService final : public v1::WorkerService::Service {
 public:
  struct Options {
    Attachments::Options attachments;
    uint32_t tail_tokens_max = 1024;  // Wrapped question and answer together.
    uint32_t answer_tokens_max = limits::kAnswerTokensMax;
    // Calls that begin after it has fired are UNAVAILABLE. Not owned; may be null.
    DrainSignal* drain = nullptr;
  };
  WorkerService(Options options, const Model& model, Transport& transport, StoreClient& store,
                Metrics& metrics, Clock& clock);

  grpc::Status Attach(grpc::ServerContext* context, const v1::AttachRequest* request,
                      v1::AttachResponse* response) override;
  grpc::Status Ask(grpc::ServerContext* context, const v1::AskRequest* request,
                   grpc::ServerWriter<v1::AskResponse>* writer) override;
  grpc::Status Detach(grpc::ServerContext* context, const v1::DetachRequest* request,
                      v1::DetachResponse* response) override;
  grpc::Status GetWorker(grpc::ServerContext* context, const v1::GetWorkerRequest* request,
                         v1::GetWorkerResponse* response) override;

 private:
  absl::Status DoAttach(grpc::ServerContext& context, const v1::AttachRequest& request,
                        v1::AttachResponse& response);
  absl::Status DoAsk(grpc::ServerContext& context, const v1::AskRequest& request,
                     grpc::ServerWriter<v1::AskResponse>& writer);
  // FAILED_PRECONDITION naming both sides when the object is not of this model.
  absl::Status CheckModel(const Manifest& manifest) const;

  const Options options_;
  const Model& model_;
  Transport& transport_;
  StoreClient& store_;
  Metrics& metrics_;
  Clock& clock_;
  Attachments attachments_;
};

}  // namespace kvtier

#endif  // KVTIER_SERVICES_WORKER_SERVICE_H_
