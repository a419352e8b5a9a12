// CompressorService: validates, finds what is stored already, shares running computations,
// computes, uploads. Everything that takes decisions lives below it: Pipeline (what to compute),
// CompressQueue (whether and when), StoreClient (where it goes).
#ifndef KVTIER_SERVICES_COMPRESSOR_SERVICE_H_
#define KVTIER_SERVICES_COMPRESSOR_SERVICE_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "base/clock.h"
#include "compressor/pipeline.h"
#include "kvtier/v1/compressor.grpc.pb.h"
#include "services/client.h"
#include "services/compress_queue.h"
#include "services/drain_signal.h"
#include "services/metrics.h"

namespace kvtier {

// Thread-safe. Owns neither models, store client, metrics nor clock; all must outlive it.
class CompressorService final : public v1::CompressorService::Service {
 public:
  struct Options {
    // Hears of each object that was computed and stored, on the thread that did; may be null.
    std::function<void(const CompressedObject&)> on_stored = nullptr;
    PipelineOptions pipeline;
    // For recipe head, by model name; models without have no such recipe.
    std::map<std::string, std::shared_ptr<const HeadScores>> head_scores;
    CompressQueue::Options queue;
    // Calls that begin after it has fired are UNAVAILABLE. Not owned; may be null.
    DrainSignal* drain = nullptr;
  };
  CompressorService(Options options, const std::vector<const Model*>& models, StoreClient& store,
                    Metrics& metrics, Clock& clock);

  grpc::Status Compress(grpc::ServerContext* context, const v1::CompressRequest* request,
                        grpc::ServerWriter<v1::CompressResponse>* writer) override;
  grpc::Status ListModels(grpc::ServerContext* context, const v1::ListModelsRequest* request,
                          v1::ListModelsResponse* response) override;

  // Ends waiting and running computations; called when the server drains.
  void CancelAll() { queue_.Shutdown(); }

 private:
  absl::Status DoCompress(grpc::ServerContext& context, const v1::CompressRequest& request,
                          grpc::ServerWriter<v1::CompressResponse>& writer);
  // The stored object if it is resident to `min_ratio` and survives what `durability` names;
  // NOT_FOUND otherwise.
  absl::StatusOr<v1::CompressResult> FindStored(const Key& key, Ratio min_ratio,
                                                v1::Durability durability, absl::Time deadline);
  // Runs on a pool thread of the queue.
  absl::StatusOr<v1::CompressResult> ComputeAndStore(const Pipeline& pipeline,
                                                     const v1::CompressRequest& request,
                                                     const CompressQueue::Progress& on_progress,
                                                     const CancelToken& cancel);

  absl::flat_hash_map<std::string, std::unique_ptr<Pipeline>> pipelines_;  // By model name.
  const std::function<void(const CompressedObject&)> on_stored_;
  DrainSignal* const drain_;  // May be null.
  StoreClient& store_;
  Metrics& metrics_;
  Clock& clock_;
  CompressQueue queue_;  // Last: its threads use everything above.
};

}  // namespace kvtier

#endif  // KVTIER_SERVICES_COMPRESSOR_SERVICE_H_
