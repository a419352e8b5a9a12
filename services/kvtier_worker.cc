// kvtier-worker: the reference inference worker. Fetches compressed caches and answers questions.

#include <memory>
#include <string>
#include <utility>

#include "absl/flags/flag.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "services/machine_devices.h"
#include "services/model_flags.h"
#include "services/server.h"
#include "services/server_flags.h"
#include "services/shm_transport.h"
#include "services/worker_service.h"

ABSL_FLAG(std::string, store, "127.0.0.1:7071", "host:port of the store to fetch from");
ABSL_FLAG(
    std::string, store_shm, "",
    "the store's --shm_socket, when it runs on this host: objects are then read in its memory; "
    "what is refused there is fetched from --store");
ABSL_FLAG(uint64_t, attached_mib_max, 4096,
          "memory for all attached caches together: that of the --device which computes");
ABSL_FLAG(uint32_t, tail_tokens_max, 1024, "longest question and answer together, in tokens");
ABSL_FLAG(uint32_t, asks_max, kvtier::limits::kConcurrentAsksPerObjectMax,
          "questions that may run at once on one attached cache");

namespace kvtier {
namespace {

constexpr char kUsage[] =
    "Answers many questions from one stored, compressed KV cache, without prefilling it again.\n\n"
    "  kvtier-worker --model tests/fixtures/model --store 127.0.0.1:7071\n\n"
    "Clients call kvtier.v1.WorkerService, e.g. through 'kvtierctl ask'.";

absl::Status Run(const ServerOptions& server_options) {
  Metrics metrics;
  KVTIER_ASSIGN_OR_RETURN(const LoadedModels loaded,
                          LoadModelsFromFlags(MachineDevices(ThreadsFromFlags()), metrics));
  if (loaded.models.size() != 1) {
    return absl::InvalidArgumentError("a worker serves one model; --model names several");
  }
  const auto channel = MakeChannel(absl::GetFlag(FLAGS_store));
  StoreClient store(channel);
  std::unique_ptr<Transport> transport = MakeGrpcTransport(channel);
  if (const std::string path = absl::GetFlag(FLAGS_store_shm); !path.empty()) {
    transport =
        MakeFallbackTransport(MakeShmTransport({.path = path}), std::move(transport), metrics);
  }
  WorkerService::Options options;
  options.attachments.bytes_max = absl::GetFlag(FLAGS_attached_mib_max) * limits::kMiB;
  options.attachments.asks_per_object_max = absl::GetFlag(FLAGS_asks_max);
  options.tail_tokens_max = absl::GetFlag(FLAGS_tail_tokens_max);
  DrainSignal drain;
  options.drain = &drain;
  WorkerService service(options, *loaded.models.front(), *transport, store, metrics, Clock::Real());
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<Server> server,
                          Server::Start(Draining(server_options, drain), {&service}, metrics));
  KVTIER_LOG(INFO) << "answering on port " << server->port() << ", fetching from "
                   << absl::GetFlag(FLAGS_store);
  server->WaitForSignalAndDrain([] {});
  return absl::OkStatus();
}

}  // namespace
}  // namespace kvtier

int main(int argc, char** argv) {
  const kvtier::ServerOptions options =
      kvtier::StartProgram(argc, argv, "kvtier-worker", kvtier::kUsage, "127.0.0.1:7073");
  return kvtier::ExitWith(kvtier::Run(options));
}
