// kvtier-bench disk: what Put DISK and fetches from disk reach beside files past the page cache in
// the same folder, what a store that has turned over costs in writes and space, and how long one
// takes to come back after kill -9. What the kernel says the store read and wrote is held against
// what it was given: bytes that a cache served would make no figure of a disk.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <thread>  // NOLINT(build/c++11)
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "bench/machine_limits.h"
#include "bench/store_process.h"
#include "bench/stored_object.h"
#include "bench/suite.h"
#include "bench/timing.h"
#include "services/client.h"

namespace kvtier::bench {
namespace {

constexpr uint64_t kSegmentBytes = uint64_t{4} << 20;
// What the store's database takes of the host budget, rounded up.
constexpr uint64_t kDatabaseBytes = uint64_t{48} << 20;
constexpr absl::Duration kSampleInterval = absl::Milliseconds(5);

// The rows with targets, without their values.
Row FillingRow() {
  return {"put DISK, filling", 0, "GB/s", 0, "O_DIRECT write", Target::ShareOfLimit(0.30)};
}
Row FillingWritesRow() {
  return {"put DISK, filling: bytes written / bytes put", 0, "x", 0, "", Target::AtMost(1.1)};
}
Row TurnoverWritesRow() {
  return {
      "put DISK, three turnovers: bytes written / bytes put", 0, "x", 0, "", Target::AtMost(1.3)};
}
Row TurnoverFilesRow() {
  return {
      "put DISK, three turnovers: files / live bytes, at most", 0, "x", 0, "", Target::AtMost(1.2)};
}
Row TurnoverBudgetRow() {
  return {"put DISK, three turnovers: files / disk budget, at any moment",
          0,
          "x",
          0,
          "",
          Target::AtMost(1.0)};
}
Row ColdFetchRow() {
  return {"fetch from disk, page cache bypassed",
          0,
          "GB/s",
          0,
          "O_DIRECT random read",
          Target::ShareOfLimit(0.9)};
}
constexpr uint64_t kReopenBytes = 5'000'000'000;
constexpr uint64_t kReopenQuickBytes = 64'000'000;
Row ReopenRow(bool is_quick) {
  return {absl::StrCat("reopen after kill -9, ",
                       is_quick ? std::string("little data") : std::string("5 GB")),
          0,
          "s",
          0,
          "start of an empty store",
          Target::AtMost(2.0)};
}
Row With(Row row, double value, double limit = 0) {
  row.value = value;
  row.limit = limit;
  return row;
}

std::string Mib(const char* flag, uint64_t bytes) {
  return absl::StrCat("--", flag, "=", (bytes + (uint64_t{1} << 20) - 1) >> 20);
}

absl::Status PutOnDisk(StoreClient& client, const CompressedObject& object) {
  return client.Put(object, v1::DURABILITY_DISK, nullptr, CancelToken(), absl::InfiniteFuture())
      .status();
}

// Of `bytes` that were put or fetched, what the kernel counted.
absl::StatusOr<double> Amplification(uint64_t counted_bytes, uint64_t bytes) {
  // A disk that compresses is none that we know of.
  if (counted_bytes < bytes / 10 * 9) {
    return absl::FailedPreconditionError(
        absl::StrCat("the kernel counts ", counted_bytes, " bytes of the disk for ", bytes,
                     " of the store's: name a folder on a disk with --folder"));
  }
  return static_cast<double>(counted_bytes) / static_cast<double>(bytes);
}

// Six bands, as the compressor makes them.
ObjectShape BandedShape(uint64_t bytes) {
  ObjectShape shape = FlatShape(bytes, bytes / 8);
  shape.edges = {0.1, 0.2, 0.3, 0.4, 0.6, 1.0};
  return shape;
}

// --- Filling -------------------------------------------------------------------------------------

absl::Status MeasureFilling(const std::string& folder, const CompressedObject& object, int runs,
                            RawDisk& raw, SuiteResult& result) {
  const uint64_t bytes = object.manifest->total_bytes();
  KVTIER_ASSIGN_OR_RETURN(
      const std::unique_ptr<StoreProcess> store,
      StoreProcess::Start({"--data_dir=" + folder, Mib("host_budget_mib", 3 * bytes)}));
  StoreClient client(MakeChannel(store->address()));
  KVTIER_ASSIGN_OR_RETURN(const uint64_t written, store->process().WrittenBytes());
  uint64_t seed = 1;
  KVTIER_ASSIGN_OR_RETURN(
      const auto medians,
      MediansInTurns(runs, {{[&]() -> absl::StatusOr<std::vector<double>> {
                              KVTIER_ASSIGN_OR_RETURN(const double seconds, raw.WriteSeconds());
                              return std::vector<double>{seconds};
                            }},
                            {[&]() -> absl::StatusOr<std::vector<double>> {
                              const CompressedObject another = Renamed(object, ++seed);
                              KVTIER_ASSIGN_OR_RETURN(const double seconds, Seconds([&] {
                                                        return PutOnDisk(client, another);
                                                      }));
                              return std::vector<double>{seconds};
                            }}}));
  KVTIER_ASSIGN_OR_RETURN(const uint64_t written_after, store->process().WrittenBytes());
  KVTIER_ASSIGN_OR_RETURN(const double amplification,
                          Amplification(written_after - written, (seed - 1) * bytes));
  result.rows.push_back(With(FillingRow(), 1e-9 * static_cast<double>(bytes) / medians[1][0],
                             1e-9 * static_cast<double>(raw.bytes()) / medians[0][0]));
  result.rows.push_back(With(FillingWritesRow(), amplification));
  return absl::OkStatus();
}

// --- After turnovers -----------------------------------------------------------------------------

// The largest that a folder has been, looked at every few milliseconds.
class FolderWatch {
 public:
  explicit FolderWatch(std::string folder)
      : folder_(std::move(folder)), thread_([this] {
          while (!stop_) {
            largest_ = std::max<uint64_t>(largest_, DiskBytes(folder_));
            absl::SleepFor(kSampleInterval);
          }
        }) {}
  ~FolderWatch() {
    stop_ = true;
    thread_.join();
  }
  uint64_t largest_bytes() const { return largest_; }

 private:
  const std::string folder_;
  std::atomic<bool> stop_{false};
  std::atomic<uint64_t> largest_{0};
  std::thread thread_;
};

absl::Status MeasureTurnovers(const std::string& folder, bool is_quick, RawDisk& raw,
                              SuiteResult& result) {
  constexpr int kTurnovers = 3;
  const uint64_t budget = (is_quick ? uint64_t{96} : uint64_t{1024}) << 20;
  // Sixteen fill the budget.
  KVTIER_ASSIGN_OR_RETURN(const CompressedObject object,
                          MakeStoredObject(BandedShape(budget / 16), /*seed=*/1));
  const uint64_t bytes = object.manifest->total_bytes();

  KVTIER_ASSIGN_OR_RETURN(
      const std::unique_ptr<StoreProcess> store,
      StoreProcess::Start({"--data_dir=" + folder, Mib("disk_budget_mib", budget),
                           Mib("host_budget_mib", kDatabaseBytes + budget / 4)}));
  StoreClient client(MakeChannel(store->address()));
  const FolderWatch watch(folder);
  uint64_t put_bytes = 0;
  uint64_t written = 0;
  double files_over_live = 0;
  double seconds = 0;
  uint64_t counted_bytes = 0;
  std::vector<double> raw_seconds;  // Each time that as much as the budget has been put.
  for (uint64_t seed = 2; put_bytes < (kTurnovers + 1) * budget; ++seed) {
    // The first budget's worth fills; what follows turns it over.
    if (put_bytes / budget > raw_seconds.size()) {
      KVTIER_ASSIGN_OR_RETURN(raw_seconds.emplace_back(), raw.WriteSeconds());
    }
    if (written == 0 && put_bytes >= budget) {
      KVTIER_ASSIGN_OR_RETURN(written, store->process().WrittenBytes());
    }
    KVTIER_ASSIGN_OR_RETURN(const double put_seconds,
                            Seconds([&] { return PutOnDisk(client, Renamed(object, seed)); }));
    put_bytes += bytes;
    if (written == 0) continue;
    seconds += put_seconds;
    counted_bytes += bytes;
    KVTIER_ASSIGN_OR_RETURN(const v1::StatsResponse stats, client.Stats(absl::InfiniteFuture()));
    files_over_live = std::max(
        files_over_live, static_cast<double>(DiskBytes(folder)) /
                             static_cast<double>(std::max<uint64_t>(1, stats.disk().bytes())));
  }
  KVTIER_ASSIGN_OR_RETURN(const uint64_t written_after, store->process().WrittenBytes());
  KVTIER_ASSIGN_OR_RETURN(const double amplification,
                          Amplification(written_after - written, counted_bytes));
  result.rows.push_back(
      {"put DISK, three turnovers", 1e-9 * static_cast<double>(counted_bytes) / seconds, "GB/s",
       1e-9 * static_cast<double>(raw.bytes()) / Median(raw_seconds), "O_DIRECT write"});
  result.rows.push_back(With(TurnoverWritesRow(), amplification));
  result.rows.push_back(With(TurnoverFilesRow(), files_over_live));
  result.rows.push_back(With(TurnoverBudgetRow(), static_cast<double>(watch.largest_bytes()) /
                                                      static_cast<double>(budget)));
  return absl::OkStatus();
}

// --- Reading -------------------------------------------------------------------------------------

// What the files below `folder` have in the page cache goes. The store reads segments past it; this
// is for what it reads through it.
void DropPageCache(const std::string& folder) {
  std::error_code error;
  for (std::filesystem::recursive_directory_iterator entry(folder, error);
       !error && entry != std::filesystem::recursive_directory_iterator(); entry.increment(error)) {
    const int fd = open(entry->path().c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) continue;
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
  }
}

absl::Status MeasureColdFetch(const std::string& folder, const CompressedObject& object, int runs,
                              RawDisk& raw, SuiteResult& result) {
  const uint64_t bytes = object.manifest->total_bytes();
  {
    KVTIER_ASSIGN_OR_RETURN(
        const std::unique_ptr<StoreProcess> store,
        StoreProcess::Start(
            {"--data_dir=" + folder, Mib("host_budget_mib", kDatabaseBytes + 2 * bytes)}));
    StoreClient client(MakeChannel(store->address()));
    KVTIER_RETURN_IF_ERROR(PutOnDisk(client, object));
  }
  // Memory for a part of its one band, so that no fetch finds it there.
  KVTIER_ASSIGN_OR_RETURN(
      const std::unique_ptr<StoreProcess> store,
      StoreProcess::Start(
          {"--data_dir=" + folder, Mib("host_budget_mib", kDatabaseBytes + bytes / 4)}));
  const std::unique_ptr<Transport> transport = MakeGrpcTransport(MakeChannel(store->address()));
  KeepingSink sink;
  FetchRequest request;
  request.key = object.manifest->key;
  KVTIER_RETURN_IF_ERROR(raw.WriteSeconds().status());
  KVTIER_ASSIGN_OR_RETURN(
      const auto medians,
      MediansInTurns(
          runs, {{[&]() -> absl::StatusOr<std::vector<double>> {
                   KVTIER_ASSIGN_OR_RETURN(const double seconds, raw.RandomReadSeconds());
                   return std::vector<double>{seconds};
                 }},
                 {[&]() -> absl::StatusOr<std::vector<double>> {
                   sink.Clear();
                   DropPageCache(folder);
                   KVTIER_ASSIGN_OR_RETURN(const uint64_t read, store->process().ReadBytes());
                   KVTIER_ASSIGN_OR_RETURN(const double seconds, Seconds([&] {
                                             return transport->Fetch(request,
                                                                     absl::InfiniteFuture(), sink);
                                           }));
                   if (sink.bytes() != bytes) {
                     return absl::InternalError("a fetch of fewer bytes");
                   }
                   KVTIER_ASSIGN_OR_RETURN(const uint64_t read_after, store->process().ReadBytes());
                   KVTIER_RETURN_IF_ERROR(Amplification(read_after - read, bytes).status());
                   return std::vector<double>{seconds};
                 }}}));
  result.rows.push_back(With(ColdFetchRow(), 1e-9 * static_cast<double>(bytes) / medians[1][0],
                             1e-9 * static_cast<double>(raw.bytes()) / medians[0][0]));
  return absl::OkStatus();
}

// --- Coming back ---------------------------------------------------------------------------------

// From the start of the process to its first answer.
absl::StatusOr<double> StartSeconds(const std::string& folder, std::unique_ptr<StoreProcess>* store,
                                    uint64_t* objects) {
  DropPageCache(folder);
  return Seconds([&]() -> absl::Status {
    KVTIER_ASSIGN_OR_RETURN(*store, StoreProcess::Start({"--data_dir=" + folder}));
    StoreClient client(MakeChannel((*store)->address()));
    KVTIER_ASSIGN_OR_RETURN(const v1::StatsResponse stats, client.Stats(absl::InfiniteFuture()));
    *objects = stats.objects();
    return absl::OkStatus();
  });
}

absl::Status MeasureReopening(const std::string& folder, const std::string& empty_folder,
                              const StoreSuiteOptions& options, SuiteResult& result) {
  const uint64_t bytes = options.is_quick ? kReopenQuickBytes : kReopenBytes;
  KVTIER_ASSIGN_OR_RETURN(const CompressedObject object,
                          MakeStoredObject(BandedShape(uint64_t{32} << 20), /*seed=*/1));
  std::unique_ptr<StoreProcess> store, empty;
  uint64_t objects = 0;
  KVTIER_RETURN_IF_ERROR(StartSeconds(folder, &store, &objects).status());
  uint64_t put_bytes = 0;
  uint64_t put_objects = 0;
  {
    StoreClient client(MakeChannel(store->address()));
    for (; put_bytes < bytes; put_bytes += object.manifest->total_bytes()) {
      KVTIER_RETURN_IF_ERROR(PutOnDisk(client, Renamed(object, ++put_objects)));
    }
  }
  KVTIER_ASSIGN_OR_RETURN(
      const auto medians,
      MediansInTurns(options.runs,
                     {{[&]() -> absl::StatusOr<std::vector<double>> {
                        uint64_t none = 0;
                        KVTIER_ASSIGN_OR_RETURN(const double seconds,
                                                StartSeconds(empty_folder, &empty, &none));
                        empty->process().Kill();
                        return std::vector<double>{seconds};
                      }},
                      {[&]() -> absl::StatusOr<std::vector<double>> {
                        store->process().Kill();
                        KVTIER_ASSIGN_OR_RETURN(const double seconds,
                                                StartSeconds(folder, &store, &objects));
                        if (objects != put_objects) {
                          return absl::InternalError(
                              absl::StrCat(objects, " of ", put_objects, " objects came back"));
                        }
                        return std::vector<double>{seconds};
                      }}}));
  result.rows.push_back(With(ReopenRow(options.is_quick), medians[1][0], medians[0][0]));
  result.facts.emplace_back("reopened_bytes", static_cast<double>(put_bytes));
  result.facts.emplace_back("reopened_objects", static_cast<double>(put_objects));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SuiteResult> RunDiskSuite(const StoreSuiteOptions& options) {
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<ScratchFolder> scratch,
                          ScratchFolder::Create(options.folder));
  KVTIER_ASSIGN_OR_RETURN(const CompressedObject object,
                          MakeStoredObject(FlatShape(options.object_bytes, kSegmentBytes), 1));
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<RawDisk> raw,
                          RawDisk::Create(scratch->path(), options.object_bytes));
  SuiteResult result;
  // A data folder for each, which is gone before the next. What fails leaves its rows unmeasured.
  const auto in_folder = [&](auto measure, const std::vector<Row>& rows) -> absl::Status {
    KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<ScratchFolder> folder,
                            ScratchFolder::Create(scratch->path()));
    const absl::Status status = measure(folder->path());
    if (status.ok()) return status;
    for (const Row& row : rows) {
      result.rows.push_back(
          NotMeasured(row.name, row.unit, row.target, std::string(status.message())));
    }
    return absl::OkStatus();
  };
  KVTIER_RETURN_IF_ERROR(in_folder(
      [&](const std::string& folder) {
        return MeasureFilling(folder, object, options.runs, *raw, result);
      },
      {FillingRow(), FillingWritesRow()}));
  KVTIER_RETURN_IF_ERROR(in_folder(
      [&](const std::string& folder) {
        return MeasureTurnovers(folder, options.is_quick, *raw, result);
      },
      {TurnoverWritesRow(), TurnoverFilesRow(), TurnoverBudgetRow()}));
  KVTIER_RETURN_IF_ERROR(in_folder(
      [&](const std::string& folder) {
        return MeasureColdFetch(folder, object, options.runs, *raw, result);
      },
      {ColdFetchRow()}));
  KVTIER_RETURN_IF_ERROR(in_folder(
      [&](const std::string& folder) {
        return MeasureReopening(folder + "/store", folder + "/empty", options, result);
      },
      {ReopenRow(options.is_quick)}));
  result.note =
      "O_DIRECT reads and writes: 4 MiB each, one after the other. Turnovers are measured once.";
  return result;
}

}  // namespace kvtier::bench
