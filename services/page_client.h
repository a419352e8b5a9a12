// Typed calls on PageService, for engines' plug-ins. Pages are read from the wire's buffers
// straight into the caller's memory and checked there.
//
//   PageClient pages(MakeChannel("127.0.0.1:7071"));
//   auto put = pages.Put({{key, bytes}}, v1::DURABILITY_HOST, deadline);
//   auto got = pages.Get({{key, room}}, deadline);
//   if (got.ok() && (*got)[0].status.ok()) ... the first (*got)[0].bytes bytes of `room`
#ifndef KVTIER_SERVICES_PAGE_CLIENT_H_
#define KVTIER_SERVICES_PAGE_CLIENT_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <grpcpp/channel.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/bytes.h"
#include "kvcache/ids.h"
#include "kvtier/v1/pages.pb.h"
#include "kvtier/v1/types.pb.h"
#include "store/page.h"

namespace kvtier {

// Thread-safe. Deadlines are absolute; InfiniteFuture() means none. The status of a call, and of
// each page: pages.proto, beside UNAVAILABLE and DEADLINE_EXCEEDED of the call.
class PageClient {
 public:
  explicit PageClient(std::shared_ptr<grpc::Channel> channel, TenantId tenant = TenantId());
  ~PageClient();

  struct PutItem {
    PageKey key;
    ByteSpan bytes;
  };
  absl::StatusOr<std::vector<absl::Status>> Put(std::span<const PutItem> pages,
                                                v1::Durability durability, absl::Time deadline);

  struct GetItem {
    PageKey key;
    MutableByteSpan room;  // Written only in its first `bytes` bytes.
  };
  struct Got {
    // OUT_OF_RANGE: larger than the room. DATA_LOSS: damaged in the store or on the way.
    absl::Status status;
    uint64_t bytes = 0;
  };
  absl::StatusOr<std::vector<Got>> Get(std::span<const GetItem> pages, absl::Time deadline);

  // In memory or on disk, without reading it.
  absl::StatusOr<std::vector<bool>> Exists(std::span<const PageKey> keys, absl::Time deadline);
  absl::StatusOr<std::vector<absl::Status>> Delete(std::span<const PageKey> keys,
                                                   absl::Time deadline);
  absl::StatusOr<v1::PageStatsResponse> Stats(absl::Time deadline);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvtier

#endif  // KVTIER_SERVICES_PAGE_CLIENT_H_
