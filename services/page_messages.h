// BatchGetResponse made and read without copying pages: on the wire an ordinary message. Making
// one: a few bytes of fields before each page, then a slice that references the page where it lies
// and holds it until gRPC has sent it. Reading one: each page is copied once, to where the caller
// wants it. Hostile bytes are refused before anything is allocated for them.
//
// Plain functions: thread-safe.
#ifndef KVTIER_SERVICES_PAGE_MESSAGES_H_
#define KVTIER_SERVICES_PAGE_MESSAGES_H_

#include <cstdint>
#include <span>
#include <vector>

#include <grpcpp/support/byte_buffer.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/bytes.h"
#include "base/crc32c.h"
#include "kvtier/v1/pages.pb.h"
#include "store/page.h"

namespace kvtier {

// INVALID_ARGUMENT naming the key: not of 32 bytes, or more keys than one batch may have.
absl::StatusOr<std::vector<PageKey>> PageKeysFromProto(
    const google::protobuf::RepeatedPtrField<std::string>& keys);
// INVALID_ARGUMENT: more pages or bytes than one batch may have, or a key not of 32 bytes.
absl::Status CheckBatchPut(const v1::BatchPutRequest& request);

// `codes` and `pages` have one entry each per key; a page that is not OK is null.
grpc::ByteBuffer MakeBatchGetResponse(std::span<const absl::StatusCode> codes,
                                      std::span<const PageRef> pages);

// One page of a response. `bytes` of it were copied; larger ones than the room for them are not.
struct PageGotView {
  absl::StatusCode code = absl::StatusCode::kOk;
  Crc32c crc32c;
  uint64_t bytes = 0;
};
// Copies the payload of page i into rooms[i].
// INVALID_ARGUMENT: not a BatchGetResponse for so many pages.
absl::StatusOr<std::vector<PageGotView>> ReadBatchGetResponse(
    const grpc::ByteBuffer& message, std::span<const MutableByteSpan> rooms);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_PAGE_MESSAGES_H_
