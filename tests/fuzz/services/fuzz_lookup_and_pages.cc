// Any bytes, the first of which says as which message: a LookupRequest and a BatchPutRequest that
// pass their checks keep what later code relies on; a BatchGetResponse read in place is what the
// generated class reads.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include "base/limits.h"
#include "base/log.h"
#include "kvtier/v1/pages.pb.h"
#include "kvtier/v1/store.pb.h"
#include "services/lookup_request.h"
#include "services/page_messages.h"
#include "store/prefix_index.h"

namespace kvtier {
namespace {

void Lookup(const std::string& bytes) {
  v1::LookupRequest request;
  if (!request.ParseFromString(bytes)) return;
  const absl::Status checked = CheckLookupRequest(request);
  if (!checked.ok()) {
    KVTIER_CHECK(absl::IsInvalidArgument(checked)) << checked;
    return;
  }
  PrefixIndex index;
  for (const v1::LookupPrompt& prompt : request.prompts()) {
    const absl::string_view hashes = prompt.block_hashes();
    // The last block is one of an object: it is found, unless the prompt is said to be shorter.
    if (hashes.size() >= TokenBlockHash::kSize) {
      const auto last = TokenBlockHash::FromBytes(hashes.substr(hashes.size() - 32));
      const PrefixMatch object{.context_tokens = 64, .upload = MakeUploadId()};
      index.Insert(TenantId(), *last, object);
      const auto found = index.Find(
          TenantId(), {.block_hashes = hashes, .context_tokens = prompt.context_tokens()}, 4);
      KVTIER_CHECK_EQ(found.empty(), prompt.context_tokens() < 64);
      index.Remove(TenantId(), *last, object);
    }
    KVTIER_CHECK(index.Find(TenantId(), {.block_hashes = hashes}, 4).empty());
  }
}

void Put(const std::string& bytes) {
  v1::BatchPutRequest request;
  if (!request.ParseFromString(bytes)) return;
  if (!CheckBatchPut(request).ok()) return;
  KVTIER_CHECK_LE(static_cast<uint32_t>(request.pages_size()), limits::kPageBatchMax);
  for (const v1::PagePut& page : request.pages()) KVTIER_CHECK_OK(PageKey::FromBytes(page.key()));
}

void GetRequest(const std::string& bytes) {
  v1::BatchGetRequest request;
  if (!request.ParseFromString(bytes)) return;
  const auto keys = PageKeysFromProto(request.keys());
  if (keys.ok()) KVTIER_CHECK_EQ(keys->size(), static_cast<size_t>(request.keys_size()));
}

// In two slices, cut where the first byte says, so that fields lie across them.
void GetResponse(const std::string& bytes) {
  v1::BatchGetResponse expected;
  const bool parses = expected.ParseFromString(bytes);
  constexpr size_t kRoomBytes = 64;
  const size_t count = parses ? static_cast<size_t>(expected.pages_size()) : 3;
  std::vector<std::string> rooms(count, std::string(kRoomBytes, '\0'));
  std::vector<MutableByteSpan> spans;
  for (std::string& room : rooms) spans.push_back(AsMutableBytes(room));
  const size_t cut = bytes.empty() ? 0 : static_cast<uint8_t>(bytes[0]) % bytes.size();
  const grpc::Slice slices[] = {grpc::Slice(bytes.substr(0, cut)), grpc::Slice(bytes.substr(cut))};
  const auto pages = ReadBatchGetResponse(grpc::ByteBuffer(slices, 2), spans);
  if (!pages.ok()) {
    KVTIER_CHECK(absl::IsInvalidArgument(pages.status())) << pages.status();
    KVTIER_CHECK(!parses) << pages.status();
    return;
  }
  if (!parses) return;
  for (size_t i = 0; i < count; ++i) {
    const v1::PageGot& page = expected.pages(static_cast<int>(i));
    const PageGotView& view = (*pages)[i];
    if (page.code() <= 16) KVTIER_CHECK_EQ(static_cast<uint32_t>(view.code), page.code());
    KVTIER_CHECK_EQ(view.crc32c.value(), page.crc32c());
    KVTIER_CHECK_EQ(view.bytes, page.payload().size());
    if (view.bytes <= kRoomBytes) {
      KVTIER_CHECK(rooms[i].substr(0, view.bytes) == page.payload());
    }
  }
}

}  // namespace
}  // namespace kvtier

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 4) {
    case 0:
      kvtier::Lookup(bytes);
      break;
    case 1:
      kvtier::Put(bytes);
      break;
    case 2:
      kvtier::GetRequest(bytes);
      break;
    default:
      kvtier::GetResponse(bytes);
  }
  return 0;
}
