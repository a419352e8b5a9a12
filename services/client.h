// The client library that kvtier's own programs and users' engines link: typed calls over
// kvtier.v1, zero-copy transfer of segments, absl::Status errors.
//
//   auto channel = MakeChannel("127.0.0.1:7071");
//   StoreClient store(channel);
//   auto transport = MakeGrpcTransport(channel);
//   KVTIER_ASSIGN_OR_RETURN(auto cache, FetchRaggedCache(*transport, request, deadline));
#ifndef KVTIER_SERVICES_CLIENT_H_
#define KVTIER_SERVICES_CLIENT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <grpcpp/channel.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/cancel_token.h"
#include "kvcache/compressed_object.h"
#include "kvcache/ids.h"
#include "kvcache/ragged_view.h"
#include "kvcache/transport.h"
#include "kvtier/v1/compressor.pb.h"
#include "kvtier/v1/store.pb.h"
#include "kvtier/v1/types.pb.h"
#include "kvtier/v1/worker.pb.h"

namespace kvtier {

// A channel of its own connection, without transport security. Messages up to the largest manifest
// pass; a silent peer is noticed by keepalive; nothing connects before the first call.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address);

// Typed calls on a store. Thread-safe. Deadlines are absolute; InfiniteFuture() means none. Codes
// are those of store.proto, beside UNAVAILABLE and DEADLINE_EXCEEDED.
class StoreClient {
 public:
  // Acts for `tenant` (services/tenant.h).
  explicit StoreClient(std::shared_ptr<grpc::Channel> channel, TenantId tenant = TenantId());
  ~StoreClient();

  // Uploads an object: resumes where an earlier attempt with the same upload id got to, and after a
  // cut (UNAVAILABLE) tries again a few times, long enough for a store to restart. `on_bytes` (may
  // be null) hears the object offset sent so far. CANCELLED soon after `cancel` fires; what was
  // uploaded can be resumed. `replaces`: see PutHeader.replaces_upload_id. `ttl` counts from the
  // sealing on.
  absl::StatusOr<v1::ObjectSummary> Put(const CompressedObject& object, v1::Durability durability,
                                        const std::function<void(uint64_t)>& on_bytes,
                                        const CancelToken& cancel, absl::Time deadline,
                                        const std::optional<UploadId>& replaces = std::nullopt,
                                        absl::Duration ttl = absl::InfiniteDuration());
  absl::StatusOr<v1::GetObjectResponse> GetObject(const Key& key, absl::Time deadline);
  absl::StatusOr<v1::ListResponse> List(const std::string& after_key, uint32_t page_size,
                                        absl::Time deadline);
  // keep_ratio 0 removes the object.
  absl::StatusOr<v1::DeleteResponse> Delete(const Key& key, double keep_ratio, absl::Time deadline);
  absl::StatusOr<v1::VerifyResponse> Verify(const Key& key, absl::Time deadline);
  absl::StatusOr<v1::StatsResponse> Stats(absl::Time deadline);

  // What to change of an object; what is not given stays.
  struct AttributeChange {
    std::optional<bool> pinned = std::nullopt;
    std::optional<absl::Duration> ttl = std::nullopt;  // From now on; infinite: never expires.
  };
  absl::StatusOr<v1::ObjectSummary> SetAttributes(const Key& key, const AttributeChange& change,
                                                  absl::Time deadline);
  // Returns the totals. `on_progress` (may be null) hears how far it is.
  absl::StatusOr<v1::DeleteManyResponse> DeleteMany(
      const v1::DeleteManyRequest& request,
      const std::function<void(const v1::DeleteManyResponse&)>& on_progress, absl::Time deadline);
  // Calls `on_message` for each message of the stream until it returns false, and then returns OK.
  // Otherwise the error that ended it: ABORTED and UNAVAILABLE say watch again, with the
  // incarnation and number of the last message.
  absl::Status Watch(const v1::WatchRequest& request, absl::Time deadline,
                     const std::function<bool(const v1::WatchResponse&)>& on_message);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

struct GrpcTransportOptions {
  // Whether every head's CRC32C is checked while its bytes are copied. Without it a sink is handed
  // bytes that only TCP's checksum has seen: for a caller that calls VerifySegment itself.
  bool verify = true;
};

// Transport over StoreService.Fetch. Frames are read in place from the wire's buffers and copied
// once, into the segment, and verified in the same pass.
std::unique_ptr<Transport> MakeGrpcTransport(std::shared_ptr<grpc::Channel> channel,
                                             const GrpcTransportOptions& options = {});

// Fetches into memory and assembles. REQUIRES: request.layers is absent (INVALID_ARGUMENT).
absl::StatusOr<std::shared_ptr<const RaggedCache>> FetchRaggedCache(Transport& transport,
                                                                    const FetchRequest& request,
                                                                    absl::Time deadline);

// Typed calls on a compressor. Thread-safe.
class CompressorClient {
 public:
  explicit CompressorClient(std::shared_ptr<grpc::Channel> channel);
  ~CompressorClient();
  // Returns when the object is stored. `on_progress` may be null.
  absl::StatusOr<v1::CompressResult> Compress(
      const v1::CompressRequest& request,
      const std::function<void(const v1::CompressProgress&)>& on_progress, absl::Time deadline);
  absl::StatusOr<v1::ListModelsResponse> ListModels(absl::Time deadline);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Typed calls on a worker. Thread-safe.
class WorkerClient {
 public:
  explicit WorkerClient(std::shared_ptr<grpc::Channel> channel);
  ~WorkerClient();
  absl::StatusOr<v1::AttachResponse> Attach(const v1::AttachRequest& request, absl::Time deadline);
  struct Answer {
    std::vector<uint32_t> token_ids;
    v1::AskFinish finish;
  };
  // `on_tokens` hears tokens as they come; may be null.
  absl::StatusOr<Answer> Ask(const v1::AskRequest& request,
                             const std::function<void(std::span<const uint32_t>)>& on_tokens,
                             absl::Time deadline);
  absl::Status Detach(uint64_t attachment, absl::Time deadline);
  absl::StatusOr<v1::GetWorkerResponse> GetWorker(absl::Time deadline);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvtier

#endif  // KVTIER_SERVICES_CLIENT_H_
