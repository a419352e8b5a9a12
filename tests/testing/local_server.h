// A server in the test's own process, and the way to it.
#ifndef KVTIER_TESTS_TESTING_LOCAL_SERVER_H_
#define KVTIER_TESTS_TESTING_LOCAL_SERVER_H_

#include <memory>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "absl/time/time.h"
#include "services/metrics.h"
#include "services/server.h"

namespace kvtier {

// Serves on a free port of 127.0.0.1, or where `options` says, without /metrics. `services` and
// `metrics` outlive the server. Dies if it cannot.
std::unique_ptr<Server> StartLocalServer(const std::vector<grpc::Service*>& services,
                                         Metrics& metrics,
                                         ServerOptions options = {
                                             .drain_timeout = absl::Seconds(1)});

// A channel of its own to the server's port.
std::shared_ptr<grpc::Channel> ChannelTo(const Server& server);

}  // namespace kvtier

#endif  // KVTIER_TESTS_TESTING_LOCAL_SERVER_H_
