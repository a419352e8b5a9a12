// Pages in a RocksDB database of their own, beside the one of objects: a burst of pages must not
// hold up the records of objects, nor a failure of one database the other.
// Format: store/page_disk_format.h.
//
// Positions only rise: they count bytes written, kDiskOverheadBytes more for each page. What lies
// further back than the budget's window is gone: its name at the same moment, its bytes when
// RocksDB drops the oldest file (FIFO compaction: whole files go, nothing is ever rewritten).
// Names and positions of all pages are in memory, about 300 bytes each, and are read at start-up.
//
// Files that an earlier start wrote with more memory are larger, and more pages go at once with
// each: the window is narrower until they are gone. A page whose file is gone all the same is a
// miss.
//
// Pages are a cache: damage never keeps a store from starting. A file that is gone costs its pages;
// a database that cannot be opened at all is begun anew. Both are counted.
#ifndef KVTIER_STORE_ROCKSDB_PAGE_TIER_H_
#define KVTIER_STORE_ROCKSDB_PAGE_TIER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "store/page_tier.h"

namespace rocksdb {
class Env;
}

namespace kvtier {

// What a page costs on disk beside its bytes, at most: its record of the names, and that of a page
// that went before, until they are compacted.
inline constexpr uint64_t kPageDiskOverheadBytes = 256;

struct RocksDbPageTierOptions {
  std::string folder;  // Created if missing. One process at a time.
  // Of all files together. At least kPageDiskBudgetMin. A page, and what is written at once, may
  // have a 60th of it.
  uint64_t budget_bytes = 0;
  // Of what is not on disk yet. A page, and what is written at once, may have two fifths of it. The
  // less, the more files. 0: 160 MiB.
  uint64_t memory_bytes = 0;
  rocksdb::Env* env = nullptr;  // Not owned; tests inject faults here. Null: the default.
};
inline constexpr uint64_t kPageDiskBudgetMin = uint64_t{16} << 20;

// How much of a budget of host memory for pages is to be RocksDB's: a quarter, or up to a half as
// far as pages of limits::kPageBytesMax take it (40 MiB); between 256 KiB and 160 MiB.
uint64_t RocksDbPageMemoryBytes(uint64_t host_budget_bytes);

// INVALID_ARGUMENT: the budget is too small. FAILED_PRECONDITION: pages of another format version
// (named), or in use by another process. UNAVAILABLE, RESOURCE_EXHAUSTED: the folder cannot be
// opened.
absl::StatusOr<std::unique_ptr<PageTier>> OpenRocksDbPageTier(
    const RocksDbPageTierOptions& options);

}  // namespace kvtier

#endif  // KVTIER_STORE_ROCKSDB_PAGE_TIER_H_
