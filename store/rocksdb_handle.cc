#include "store/rocksdb_handle.h"

#include <cstdarg>
#include <cstdio>
#include <memory>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "base/sync_point.h"
#include "rocksdb/convenience.h"
#include "rocksdb/db.h"
#include "rocksdb/env.h"
#include "store/rocksdb_status.h"

namespace kvtier {

namespace {

class LogLogger final : public rocksdb::Logger {
 public:
  explicit LogLogger(std::shared_ptr<std::atomic<uint64_t>> log_damage)
      : rocksdb::Logger(rocksdb::WARN_LEVEL), log_damage_(std::move(log_damage)) {}

  using rocksdb::Logger::Logv;
  void Logv(const char* format, va_list arguments) override {
    char text[512];
    std::vsnprintf(text, sizeof(text), format, arguments);
    if (absl::StrContains(text, ": dropping ")) ++*log_damage_;
    KVTIER_LOG(WARNING) << "RocksDB: " << text;
  }
  size_t GetLogFileSize() const override { return 0; }

 private:
  const std::shared_ptr<std::atomic<uint64_t>> log_damage_;
};

}  // namespace

RocksDbMessages::RocksDbMessages()
    : log_damage_(std::make_shared<std::atomic<uint64_t>>(0)),
      logger_(std::make_shared<LogLogger>(log_damage_)) {}

OpenRocksDb::OpenRocksDb() = default;

OpenRocksDb::~OpenRocksDb() {
  if (db == nullptr) return;
  if (before_close != nullptr) {
    rocksdb::CancelAllBackgroundWork(db.get(), /*wait=*/true);
    before_close(*db);
  }
  const absl::Status closed = Rocks("close", [&] {
    for (rocksdb::ColumnFamilyHandle* one : families) {
      db->DestroyColumnFamilyHandle(one).PermitUncheckedError();
    }
    return db->Close();
  });
  if (!closed.ok()) KVTIER_LOG(WARNING) << closed.message();
}

absl::StatusOr<std::unique_ptr<OpenRocksDb>> OpenRocks(
    const std::string& folder, const rocksdb::DBOptions& options,
    const std::vector<rocksdb::ColumnFamilyDescriptor>& families, bool read_only,
    bool* is_damaged) {
  auto opened = std::make_unique<OpenRocksDb>();
  opened->read_only = read_only;
  bool is_file_gone = false;
  const absl::Status status = Rocks(absl::StrCat("open ", folder), [&] {
    rocksdb::DB* db = nullptr;
    const rocksdb::Status open =
        read_only ? rocksdb::DB::OpenForReadOnly(options, folder, families, &opened->families, &db)
                  : rocksdb::DB::Open(options, folder, families, &opened->families, &db);
    opened->db.reset(db);
    is_file_gone = open.IsPathNotFound();
    return open;
  });
  if (is_damaged != nullptr) *is_damaged = is_file_gone || absl::IsDataLoss(status);
  if (absl::StrContains(status.message(), "/LOCK") &&
      (absl::StrContains(status.message(), "lock file") ||
       absl::StrContains(status.message(), "lock hold"))) {
    return absl::FailedPreconditionError(
        absl::StrCat(folder, " is in use by another process: ", status.message()));
  }
  KVTIER_RETURN_IF_ERROR(status);
  return opened;
}

absl::Status RocksDbHandle::Open(bool read_only) {
  KVTIER_ASSIGN_OR_RETURN(std::unique_ptr<OpenRocksDb> opened, open_(read_only));
  MutexLock lock(&mutex_);
  opened_ = std::move(opened);
  return absl::OkStatus();
}

void RocksDbHandle::MarkFailed(const absl::Status& status) {
  KVTIER_LOG(ERROR) << name_ << ": " << status.message();
  MutexLock lock(&mutex_);
  has_failed_ = true;
}

absl::Status RocksDbHandle::EnsureWritable() {
  std::unique_ptr<OpenRocksDb> old;
  {
    MutexLock lock(&mutex_);
    while (reopening_) changed_.Wait(&mutex_);
    if (!has_failed_) return absl::OkStatus();
    reopening_ = true;
    while (users_ > 0) changed_.Wait(&mutex_);
    old = std::move(opened_);
  }
  old.reset();  // RocksDB holds a lock on the folder.
  KVTIER_SYNC_POINT("store.reopen.closed");
  absl::StatusOr<std::unique_ptr<OpenRocksDb>> opened = open_(/*read_only=*/false);
  const absl::Status status = opened.status();
  if (!status.ok()) opened = open_(/*read_only=*/true);
  MutexLock lock(&mutex_);
  if (opened.ok()) opened_ = *std::move(opened);
  has_failed_ = !status.ok();
  reopening_ = false;
  changed_.SignalAll();
  return status;
}

RocksDbHandle::Access::Access(RocksDbHandle* handle) : handle_(handle) {
  MutexLock lock(&handle->mutex_);
  while (handle->reopening_) handle->changed_.Wait(&handle->mutex_);
  opened_ = handle->opened_.get();
  if (opened_ != nullptr) ++handle->users_;
}

RocksDbHandle::Access::~Access() {
  if (opened_ == nullptr) return;
  MutexLock lock(&handle_->mutex_);
  if (--handle_->users_ == 0) handle_->changed_.SignalAll();
}

absl::Status RocksDbHandle::Access::status() const {
  return opened_ != nullptr ? absl::OkStatus()
                            : absl::UnavailableError(absl::StrCat(
                                  handle_->name_, ": the database could not be opened again"));
}

absl::Status RocksDbHandle::Access::writable() const {
  KVTIER_RETURN_IF_ERROR(status());
  return !opened_->read_only ? absl::OkStatus()
                             : absl::UnavailableError(absl::StrCat(
                                   handle_->name_, ": the database is open for reading only"));
}

}  // namespace kvtier
