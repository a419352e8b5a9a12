#include "tests/testing/local_server.h"

#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "services/client.h"

namespace kvtier {

std::unique_ptr<Server> StartLocalServer(const std::vector<grpc::Service*>& services,
                                         Metrics& metrics, ServerOptions options) {
  options.metrics_listen = "";
  absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(options, services, metrics);
  KVTIER_CHECK_OK(server);
  return *std::move(server);
}

std::shared_ptr<grpc::Channel> ChannelTo(const Server& server) {
  return MakeChannel(absl::StrCat("127.0.0.1:", server.port()));
}

}  // namespace kvtier
