#include "tests/fault/store/torn_write.h"

#include <algorithm>
#include <memory>
#include <string>

namespace kvtier {

uint64_t SectorsOf(const DiskOp& write) {
  return (write.offset + write.data->size() - 1) / kSectorBytes - write.offset / kSectorBytes + 1;
}

void ApplySome(const DiskOp& write, uint64_t kept, DiskState* state) {
  const uint64_t end = write.offset + write.data->size();
  for (uint64_t at = write.offset; at < end; kept >>= 1) {
    const uint64_t next = std::min(end, (at / kSectorBytes + 1) * kSectorBytes);
    if ((kept & 1) != 0) {
      DiskOp sector = write;
      sector.offset = at;
      sector.data =
          std::make_shared<const std::string>(write.data->substr(at - write.offset, next - at));
      state->Apply(sector);
    }
    at = next;
  }
  state->Apply({.kind = DiskOp::Kind::kSyncFile, .path = write.path, .file = write.file});
}

}  // namespace kvtier
