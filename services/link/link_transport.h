// Transport over the link: the receiving end. Asks the store which upload is current, asks a
// compressor for that one, receives it into device memory through a communicator, and asks the
// store's transport for whatever the link does not bring: the caller gets its bytes, or the error
// of the store.
//
//   auto transport = MakeLinkTransport(MakeChannel("gpu-node:7072"), backend, communicators,
//                                      store_transport.get(), counters, clock, options);
//
// One communicator is kept for the group (options.group); it is made in the first transfer and
// again after any failure. Several fetches at once take turns, as the sender says.
#ifndef KVTIER_SERVICES_LINK_LINK_TRANSPORT_H_
#define KVTIER_SERVICES_LINK_LINK_TRANSPORT_H_

#include <cstdint>
#include <memory>
#include <string>

#include <grpcpp/channel.h>

#include "absl/time/time.h"
#include "base/clock.h"
#include "compressor/backend.h"
#include "kvcache/communicator.h"
#include "kvcache/transport.h"
#include "services/link/link_counters.h"

namespace kvtier {

struct LinkTransportOptions {
  // Which group this worker belongs to. All its ranks name the same group and number of ranks, and
  // ask for the same objects, each for its own heads. Empty: a group of its own.
  std::string group = "";
  uint32_t ranks = 1;
  uint32_t rank = 0;
  // What the link may take before the store is asked instead. At most limits::kLinkCallMax.
  absl::Duration timeout = absl::Seconds(30);
  // Whether every head's CRC32C is checked on arrival. With a device whose memory the host cannot
  // read that costs nothing extra: segments are handed over in host memory anyway.
  bool verify = true;
};

// Segments are handed over in host memory: as they lie if the host can read the backend's, else
// copied from the device. `fallback` is the store's transport. It may be null: then an error of the
// link is the caller's, and so is knowing whether what the sender has is still in the store.
// Backend, factory, fallback, counters and clock outlive it.
//
// A request without an upload id costs a question to the fallback first: which upload is current.
// Its answer is what is fetched over the link; its error (NOT_FOUND: deleted or expired) is the
// caller's. A link that fails before it has brought a manifest leaves the request as it was: the
// fallback serves the upload that is current then. A caller that has an upload id has it from the
// store, which is not asked again.
//
// Fetch returns as Transport says. With a fallback, whatever goes wrong on the link but an error of
// the sink, or the caller's own deadline, is answered by the fallback. What the link had delivered
// is not delivered again: the rest is fetched of the same upload (ABORTED if it is not there).
std::unique_ptr<Transport> MakeLinkTransport(std::shared_ptr<grpc::Channel> channel,
                                             Backend& backend, CommunicatorFactory& factory,
                                             Transport* fallback, LinkCounters& counters,
                                             Clock& clock, const LinkTransportOptions& options);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_LINK_LINK_TRANSPORT_H_
