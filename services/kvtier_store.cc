// kvtier-store: keeps compressed KV caches in host memory over a folder, and streams them to
// workers.

#include <memory>
#include <string>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "services/drain_signal.h"
#include "services/file_mode.h"
#include "services/metrics.h"
#include "services/page_service.h"
#include "services/server.h"
#include "services/server_flags.h"
#include "services/shm_server.h"
#include "services/store_service.h"
#include "store/expiry_sweeper.h"
#include "store/host_memory.h"
#include "store/lease_table.h"
#include "store/page_store.h"
#include "store/rocksdb_page_tier.h"
#include "store/rocksdb_tier.h"
#include "store/scrubber.h"
#include "store/tiered_store.h"

ABSL_FLAG(std::string, data_dir, "",
          "folder for durable objects, made if missing; empty: host memory only");
ABSL_FLAG(
    uint64_t, host_budget_mib, 1024,
    "host memory for objects, in MiB; with --data_dir, what the database itself takes is part "
    "of it");
ABSL_FLAG(
    uint64_t, disk_budget_mib, 0,
    "disk space for objects, in MiB, with all files that the database has beside them; at least "
    "8; 0: until the disk is full");
ABSL_FLAG(bool, disk_direct_reads, true,
          "read objects past the page cache, where the file system can: --host_budget_mib is then "
          "all the memory that they take");
ABSL_FLAG(std::string, eviction_policy, "gdsf",
          "which bands go first when there is no room: gdsf (by value: cost to recompute x quality "
          "lost / bytes freed x expected reuse) or lru");
ABSL_FLAG(double, floor_ratio, 0.1,
          "when there is no room, objects shrink to their first edge that reaches this ratio, and "
          "go whole from there; in (0, 1]");
ABSL_FLAG(uint64_t, page_host_mib, 64,
          "host memory for opaque pages, in MiB, beside the objects'; with --page_disk_mib, a "
          "quarter of it, or a half as far as that is up to 40, is for pages not on disk yet");
ABSL_FLAG(
    uint64_t, page_disk_mib, 0,
    "disk space for opaque pages, in MiB, beside the objects'; 0: pages are in host memory only");
ABSL_FLAG(double, prefill_tokens_per_second, 0,
          "how fast the engines that ask prefill, for the estimate that Lookup gives beside the "
          "load time; 0: not known");
ABSL_FLAG(std::string, tenant_quota_bytes, "",
          "bytes that tenants may use, as name:bytes,name:bytes; the name * is every other tenant; "
          "who is not named has no quota. Over it, the tenant's own objects go first");
ABSL_FLAG(std::string, tenant_page_quota_bytes, "",
          "bytes of opaque pages that tenants may have in host memory, and as many on disk; as "
          "--tenant_quota_bytes. Over it, the tenant's own pages in memory go first, and DISK is "
          "refused");
ABSL_FLAG(uint64_t, scrub_bytes_per_second, kvtier::ScrubberOptions().bytes_per_second,
          "reads everything stored at this rate, in bytes a second, again and again, to find and "
          "repair damage before a reader meets it; 0: never");
ABSL_FLAG(std::string, shm_socket, "",
          "path of a UNIX socket on which workers of this host are handed the memory of what they "
          "read; empty: none. Whoever may open it can read any tenant's objects");
ABSL_FLAG(kvtier::FileMode, shm_socket_mode, kvtier::FileMode{0600},
          "mode of that socket's file, in octal as for chmod; who may write to it may connect");
ABSL_FLAG(double, lease_fraction, 0.5,
          "part of the host memory budget that leases may hold, in (0, 1]");

namespace kvtier {
namespace {

constexpr char kUsage[] =
    "Stores compressed KV caches and streams them to any number of workers.\n\n"
    "  kvtier-store --data_dir /var/lib/kvtier --host_budget_mib 4096\n\n"
    "Objects live in host memory and, with --data_dir, on disk, where they survive crash and "
    "restart.\n"
    "Under pressure the least important bands of the least valuable objects go first. Clients\n"
    "call kvtier.v1.StoreService, e.g. through 'kvtierctl ls'. SIGTERM drains; a second signal\n"
    "ends at once.";

// As the flags say. `data_dir` is empty, or a store's folder.
absl::StatusOr<std::unique_ptr<PageStore>> OpenPages(const std::string& data_dir) {
  const uint64_t host_mib = absl::GetFlag(FLAGS_page_host_mib);
  const uint64_t disk_mib = absl::GetFlag(FLAGS_page_disk_mib);
  constexpr uint64_t kBudgetMibMax = uint64_t{1} << 40;  // Does not overflow in bytes.
  if (host_mib == 0 || host_mib > kBudgetMibMax || disk_mib > kBudgetMibMax) {
    return absl::InvalidArgumentError(absl::StrCat("--page_host_mib must be in [1, ", kBudgetMibMax,
                                                   "], --page_disk_mib at most that"));
  }
  std::unique_ptr<PageTier> disk;
  uint64_t database_bytes = 0;
  if (disk_mib != 0) {
    if (data_dir.empty()) return absl::InvalidArgumentError("--page_disk_mib needs --data_dir");
    database_bytes = RocksDbPageMemoryBytes(host_mib * limits::kMiB);
    KVTIER_ASSIGN_OR_RETURN(disk, OpenRocksDbPageTier({.folder = data_dir + "/pages",
                                                       .budget_bytes = disk_mib * limits::kMiB,
                                                       .memory_bytes = database_bytes}));
  }
  PageStoreOptions options;
  options.host_budget_bytes = host_mib * limits::kMiB - database_bytes;
  KVTIER_ASSIGN_OR_RETURN(options.tenant_quotas,
                          ParseTenantQuotas(absl::GetFlag(FLAGS_tenant_page_quota_bytes)));
  return PageStore::Create(options, std::move(disk));
}

absl::Status Run(const ServerOptions& server_options) {
  const uint64_t host_budget_mib = absl::GetFlag(FLAGS_host_budget_mib);
  const uint64_t disk_budget_mib = absl::GetFlag(FLAGS_disk_budget_mib);
  constexpr uint64_t kBudgetMibMax = uint64_t{1} << 40;  // Does not overflow in bytes.
  if (host_budget_mib == 0 || host_budget_mib > kBudgetMibMax || disk_budget_mib > kBudgetMibMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--host_budget_mib must be in [1, ", kBudgetMibMax, "], --disk_budget_mib at most that"));
  }
  const std::string data_dir = absl::GetFlag(FLAGS_data_dir);
  std::unique_ptr<DurableTier> disk;
  uint64_t database_bytes = 0;
  if (!data_dir.empty()) {
    if (host_budget_mib < 2) {
      return absl::InvalidArgumentError(
          "--host_budget_mib must be at least 2 with --data_dir, whose database takes 1");
    }
    constexpr uint64_t kDiskBudgetMibMin = 8;
    if (disk_budget_mib != 0 && disk_budget_mib < kDiskBudgetMibMin) {
      return absl::InvalidArgumentError(absl::StrCat("--disk_budget_mib must be 0 or at least ",
                                                     kDiskBudgetMibMin,
                                                     ", of which the database takes 1"));
    }
    database_bytes = RocksDbMemoryBytes(host_budget_mib * limits::kMiB);
    RocksDbTierOptions disk_options = {.folder = data_dir,
                                       .memory_bytes = database_bytes,
                                       .direct_reads = absl::GetFlag(FLAGS_disk_direct_reads)};
    if (disk_budget_mib != 0) {
      const uint64_t budget_bytes = disk_budget_mib * limits::kMiB;
      disk_options.files_bytes = RocksDbFilesBytes(budget_bytes);
      disk_options.list_bytes = RocksDbListBytes(budget_bytes);
      disk_options.budget_bytes =
          budget_bytes - disk_options.files_bytes - 2 * disk_options.list_bytes;
    }
    KVTIER_ASSIGN_OR_RETURN(disk, OpenRocksDbTier(disk_options));
  } else if (disk_budget_mib != 0) {
    return absl::InvalidArgumentError("--disk_budget_mib needs --data_dir");
  }
  const double lease_fraction = absl::GetFlag(FLAGS_lease_fraction);
  if (!(lease_fraction > 0 && lease_fraction <= 1)) {
    return absl::InvalidArgumentError("--lease_fraction must be in (0, 1]");
  }
  TieredStoreOptions store_options;
  store_options.host_budget_bytes = host_budget_mib * limits::kMiB - database_bytes;
  store_options.memory.files_max = ReserveMemoryFiles();
  store_options.eviction_policy = absl::GetFlag(FLAGS_eviction_policy);
  store_options.floor_ratio = absl::GetFlag(FLAGS_floor_ratio);
  KVTIER_ASSIGN_OR_RETURN(store_options.tenant_quotas,
                          ParseTenantQuotas(absl::GetFlag(FLAGS_tenant_quota_bytes)));
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<TieredStore> store,
                          TieredStore::Create(store_options, std::move(disk), Clock::Real()));
  const ExpirySweeper sweeper(*store, Clock::Real());
  LeaseTable leases({.bytes_max = static_cast<uint64_t>(
                         lease_fraction * static_cast<double>(store_options.host_budget_bytes))},
                    *store);
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<PageStore> pages, OpenPages(data_dir));
  const Scrubber scrubber({.bytes_per_second = absl::GetFlag(FLAGS_scrub_bytes_per_second)}, *store,
                          Clock::Real());
  Metrics metrics;
  metrics.ExportStore(*store, &leases);
  metrics.ExportPages(*pages);
  metrics.ExportScrub(scrubber.counters());
  StoreServiceOptions service_options;
  service_options.object_bytes_max = store_options.host_budget_bytes;
  service_options.prefill_tokens_per_second = absl::GetFlag(FLAGS_prefill_tokens_per_second);
  if (!(service_options.prefill_tokens_per_second >= 0)) {  // Nor NaN.
    return absl::InvalidArgumentError("--prefill_tokens_per_second must not be negative");
  }
  service_options.leases = &leases;
  DrainSignal drain;
  service_options.drain = &drain;
  std::unique_ptr<ShmServer> shm_server;
  if (const std::string path = absl::GetFlag(FLAGS_shm_socket); !path.empty()) {
    KVTIER_ASSIGN_OR_RETURN(
        shm_server,
        ShmServer::Start({.path = path, .mode = absl::GetFlag(FLAGS_shm_socket_mode).bits}, leases,
                         metrics));
  }
  const std::unique_ptr<grpc::Service> service =
      MakeStoreService(service_options, *store, metrics, Clock::Real());
  const std::unique_ptr<grpc::Service> page_service =
      MakePageService({.drain = &drain}, *pages, metrics, Clock::Real());
  ServerOptions draining_options = server_options;
  draining_options.drain = &drain;
  KVTIER_ASSIGN_OR_RETURN(
      const std::unique_ptr<Server> server,
      Server::Start(draining_options, {service.get(), page_service.get()}, metrics));
  KVTIER_LOG(INFO) << "serving " << store->object_count() << " objects on port " << server->port()
                   << (data_dir.empty() ? std::string(", host memory only")
                                        : absl::StrCat(", folder ", data_dir));
  // Neither watches nor leases end by themselves. What was mapped stays readable.
  server->WaitForSignalAndDrain([&] {
    drain.Fire();  // First: the end of shared memory may wait for the disk.
    store->StopWatches();
    shm_server.reset();
  });
  return absl::OkStatus();
}

}  // namespace
}  // namespace kvtier

int main(int argc, char** argv) {
  const kvtier::ServerOptions options =
      kvtier::StartProgram(argc, argv, "kvtier-store", kvtier::kUsage, "127.0.0.1:7071");
  return kvtier::ExitWith(kvtier::Run(options));
}
