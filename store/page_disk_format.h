// What the disk tier of pages writes: keys, records, and the name of the format. Bytes only;
// RocksDB is not seen here.
//
//   FORMAT   text file: "kvtier pages format 1\n"
//   db/      RocksDB, two column families beside the default one, written in one synced batch:
//     pages  position (u64 big endian) -> the page's bytes
//     names  tenant name ++ 0x00 ++ page key (32 bytes)
//              -> u64 position ++ u32 bytes ++ CRC32C of the page ++ CRC32C
//
// Numbers are little endian where not said otherwise; the last CRC32C covers the record's key and
// what is before it. Positions: store/rocksdb_page_tier.h.
#ifndef KVTIER_STORE_PAGE_DISK_FORMAT_H_
#define KVTIER_STORE_PAGE_DISK_FORMAT_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "store/page.h"
#include "store/page_tier.h"

namespace kvtier::page_disk_format {

inline constexpr char kFormatFile[] = "kvtier pages format 1\n";

std::string PositionKey(uint64_t position);

std::string NameKey(const PageName& name);
// Nothing for what is no key of `names`.
std::optional<PageName> ParseNameKey(absl::string_view key);

// Where the bytes of a page are, and what they must be.
struct Place {
  uint64_t position = 0;
  PageDigest digest;
};
std::string EncodePlace(absl::string_view name_key, const Place& place);
// Nothing for anything but what EncodePlace wrote under this key.
std::optional<Place> DecodePlace(absl::string_view name_key, absl::string_view value);

}  // namespace kvtier::page_disk_format

#endif  // KVTIER_STORE_PAGE_DISK_FORMAT_H_
