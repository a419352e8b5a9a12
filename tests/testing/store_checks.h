// Opening stores in tests, and holding what they serve against the objects that were put.
#ifndef KVTIER_TESTS_TESTING_STORE_CHECKS_H_
#define KVTIER_TESTS_TESTING_STORE_CHECKS_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "kvcache/compressed_object.h"
#include "store/rocksdb_tier.h"
#include "store/tiered_store.h"

namespace kvtier {

// Host memory of `host_budget_bytes` over RocksDB in `folder`; host memory alone if it is empty.
absl::StatusOr<std::unique_ptr<TieredStore>> OpenTestStore(const std::string& folder,
                                                           uint64_t host_budget_bytes, Clock& clock,
                                                           rocksdb::Env* env = nullptr,
                                                           uint64_t disk_budget_bytes = 0);
// The same with options of your own.
absl::StatusOr<std::unique_ptr<TieredStore>> OpenTestStore(const std::string& folder,
                                                           const TieredStoreOptions& options,
                                                           Clock& clock,
                                                           uint64_t disk_budget_bytes);

// OK if the store serves exactly the first `bands` bands of this upload, byte for byte; bands of 0:
// if it has no object of the key. Otherwise FAILED_PRECONDITION saying what differs, or the error
// of the read.
absl::Status CheckStored(TieredStore& store, const TenantId& tenant, const CompressedObject& object,
                         uint32_t bands);

// OK if the pinned bands are exactly these bytes.
absl::Status CheckPinned(PinnedObject& pinned, const CompressedObject& object, uint32_t bands);

// Bytes of all files under a folder.
uint64_t FolderBytes(const std::string& folder);

}  // namespace kvtier

#endif  // KVTIER_TESTS_TESTING_STORE_CHECKS_H_
