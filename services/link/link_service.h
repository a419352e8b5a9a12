// LinkService: the sending end of the link on the wire. Reads and writes the messages of one rank's
// stream and does what they say with a LinkSender; decides nothing.
#ifndef KVTIER_SERVICES_LINK_LINK_SERVICE_H_
#define KVTIER_SERVICES_LINK_LINK_SERVICE_H_

#include <atomic>
#include <cstdint>

#include "absl/status/status.h"
#include "base/clock.h"
#include "kvtier/v1/link.grpc.pb.h"
#include "services/drain_signal.h"
#include "services/link/link_sender.h"
#include "services/metrics.h"

namespace kvtier {

// Thread-safe. Sender, metrics and clock outlive it. A call holds a thread of gRPC's while it
// lasts.
class LinkService final : public v1::LinkService::Service {
 public:
  struct Options {
    uint32_t calls_max = limits::kLinkCallsMax;
    // Calls that begin after it has fired are UNAVAILABLE. Not owned; may be null.
    DrainSignal* drain = nullptr;
  };
  LinkService(const Options& options, LinkSender& sender, Metrics& metrics, Clock& clock);

  grpc::Status Transfer(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::TransferResponse, v1::TransferRequest>* stream) override;

 private:
  absl::Status DoTransfer(
      grpc::ServerContext& context,
      grpc::ServerReaderWriter<v1::TransferResponse, v1::TransferRequest>& stream);

  const Options options_;
  LinkSender& sender_;
  Metrics& metrics_;
  Clock& clock_;
  std::atomic<uint32_t> calls_{0};
};

}  // namespace kvtier

#endif  // KVTIER_SERVICES_LINK_LINK_SERVICE_H_
