// kvtier-compressor: prefills, scores and prunes contexts, and puts them into a store.

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "compressor/head_scores.h"
#include "kvcache/recipe.h"
#include "services/compressor_service.h"
#include "services/link/link_sender.h"
#include "services/link/link_service.h"
#include "services/machine_devices.h"
#include "services/machine_links.h"
#include "services/model_flags.h"
#include "services/server.h"
#include "services/server_flags.h"

ABSL_FLAG(std::string, store, "127.0.0.1:7071", "host:port of the store that keeps the results");
ABSL_FLAG(std::string, kv_dtype, "bf16", "element type of stored keys and values: bf16, f16, f32");
ABSL_FLAG(uint64_t, memory_budget_mib, 4096,
          "memory that all running compressions may take together, weights not counted");
ABSL_FLAG(uint64_t, context_tokens_max, 0,
          "longest context accepted; 0: what the model's positions allow");
ABSL_FLAG(std::string, codec, "",
          "row codec of requests that name no recipe: raw, int8 or int4; empty: that of --recipe");
ABSL_FLAG(std::string, recipe, "kvzip",
          "recipe of requests that name none: kvzip, kvpress, kvzip+, uniform, full-softmax, head");
ABSL_FLAG(
    std::vector<std::string>, head_scores, {},
    "files of head scores for recipe head, comma separated; each belongs to one of the models");
ABSL_FLAG(uint32_t, compressions_max, 1, "compressions that run at once");
ABSL_FLAG(uint32_t, queue_max, kvtier::limits::kCompressQueueMax, "compressions that may wait");

ABSL_FLAG(uint64_t, device_tier_mib, 0,
          "GPU memory for recent objects, which workers fetch over the link; 0: no link");

namespace kvtier {
namespace {

constexpr char kUsage[] =
    "Compresses KV caches of long contexts with KVzip and stores them.\n\n"
    "  kvtier-compressor --model tests/fixtures/model --store 127.0.0.1:7071\n\n"
    "Clients call kvtier.v1.CompressorService, e.g. through 'kvtierctl compress'. SIGTERM cancels "
    "running compressions and drains.";

// --head_scores, each for the model that it was measured on.
absl::StatusOr<std::map<std::string, std::shared_ptr<const HeadScores>>> LoadHeadScoresOf(
    const std::vector<const Model*>& models) {
  std::map<std::string, std::shared_ptr<const HeadScores>> all;
  for (const std::string& file : absl::GetFlag(FLAGS_head_scores)) {
    KVTIER_ASSIGN_OR_RETURN(HeadScores scores, LoadHeadScores(file));
    const auto model = std::find_if(models.begin(), models.end(), [&](const Model* m) {
      return m->digest() == scores.model_digest;
    });
    if (model == models.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--head_scores: ", file, " is of a model with digest ",
                       scores.model_digest.ToHex(), ", which --model does not load"));
    }
    const auto shared = std::make_shared<const HeadScores>(std::move(scores));
    if (!all.emplace((*model)->name(), shared).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("--head_scores: two files are of model ", (*model)->name()));
    }
  }
  return all;
}

// The sending end of the link, with everything that it needs.
struct LinkParts {
  LinkParts(std::unique_ptr<CommunicatorFactory> factory, uint64_t tier_bytes, Backend& backend,
            Metrics& metrics, DrainSignal& drain)
      : communicators(std::move(factory)),
        tier({.bytes_max = tier_bytes}, backend),
        sender({}, tier, *communicators, counters, Clock::Real()),
        service({.drain = &drain}, sender, metrics, Clock::Real()) {
    metrics.ExportLink(counters, &tier);
  }

  const std::unique_ptr<CommunicatorFactory> communicators;
  LinkCounters counters;
  DeviceTier tier;
  LinkSender sender;
  LinkService service;
};

// Null without --device_tier_mib, and where there is no GPU, which is said.
// INVALID_ARGUMENT: a build that can never link.
absl::StatusOr<std::unique_ptr<LinkParts>> MakeLink(Backend& backend, Metrics& metrics,
                                                    DrainSignal& drain) {
  const uint64_t tier_bytes = absl::GetFlag(FLAGS_device_tier_mib) * limits::kMiB;
  if (tier_bytes == 0) return nullptr;
  absl::StatusOr<std::unique_ptr<CommunicatorFactory>> made = MachineCommunicators(backend);
  if (absl::IsInvalidArgument(made.status())) return made.status();
  if (!made.ok()) {
    KVTIER_LOG(WARNING) << "--device_tier_mib: workers fetch from the store alone: "
                        << made.status().message();
    return nullptr;
  }
  return std::make_unique<LinkParts>(*std::move(made), tier_bytes, backend, metrics, drain);
}

absl::Status Run(const ServerOptions& server_options) {
  Metrics metrics;
  KVTIER_ASSIGN_OR_RETURN(const DType kv_dtype, DTypeFromName(absl::GetFlag(FLAGS_kv_dtype)));
  KVTIER_ASSIGN_OR_RETURN(const LoadedModels loaded,
                          LoadModelsFromFlags(MachineDevices(ThreadsFromFlags()), metrics));
  std::vector<const Model*> models;
  for (const auto& model : loaded.models) models.push_back(model.get());

  StoreClient store(MakeChannel(absl::GetFlag(FLAGS_store)));
  CompressorService::Options options;
  options.pipeline.kv_dtype = kv_dtype;
  options.pipeline.context_tokens_max = absl::GetFlag(FLAGS_context_tokens_max);
  KVTIER_ASSIGN_OR_RETURN(Recipe recipe, Recipe::ParseRequest(absl::GetFlag(FLAGS_recipe)));
  if (const std::string codec = absl::GetFlag(FLAGS_codec); !codec.empty()) {
    KVTIER_ASSIGN_OR_RETURN(recipe.row_codec, CodecFromName(codec));
  }
  options.pipeline.recipe = recipe.ToString();
  KVTIER_ASSIGN_OR_RETURN(options.head_scores, LoadHeadScoresOf(models));
  // Better now than at every request that names no recipe.
  for (const Model* model : models) {
    if (recipe.scorer != Scorer::kHead || options.head_scores.contains(model->name())) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("--recipe=head, but no file of --head_scores is of model ", model->name()));
  }
  options.queue.pool_threads = absl::GetFlag(FLAGS_compressions_max);
  options.queue.queue_max = absl::GetFlag(FLAGS_queue_max);
  options.queue.memory_bytes_max = absl::GetFlag(FLAGS_memory_budget_mib) * limits::kMiB;
  if (options.queue.pool_threads == 0) {
    return absl::InvalidArgumentError("--compressions_max must be at least 1");
  }
  DrainSignal drain;
  options.drain = &drain;
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<LinkParts> link,
                          MakeLink(*loaded.backend, metrics, drain));
  std::vector<grpc::Service*> services;
  if (link != nullptr) {
    options.on_stored = [&tier = link->tier](const CompressedObject& object) {
      // Counted by the tier; the store has the object.
      const absl::Status kept = tier.Insert(TenantId(), object).status();
      if (!kept.ok()) {
        KVTIER_LOG_EVERY_N_SEC(WARNING, 60) << "not kept in device memory: " << kept;
      }
    };
    services.push_back(&link->service);
  }
  CompressorService service(options, models, store, metrics, Clock::Real());
  services.push_back(&service);
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<Server> server,
                          Server::Start(Draining(server_options, drain), services, metrics));
  KVTIER_LOG(INFO) << "compressing on port " << server->port() << ", storing at "
                   << absl::GetFlag(FLAGS_store);
  server->WaitForSignalAndDrain([&service, &link] {
    service.CancelAll();
    // Workers fetch from the store what they have not got yet.
    if (link != nullptr) link->sender.Stop(absl::UnavailableError("the compressor is stopping"));
  });
  return absl::OkStatus();
}

}  // namespace
}  // namespace kvtier

int main(int argc, char** argv) {
  const kvtier::ServerOptions options =
      kvtier::StartProgram(argc, argv, "kvtier-compressor", kvtier::kUsage, "127.0.0.1:7072");
  return kvtier::ExitWith(kvtier::Run(options));
}
