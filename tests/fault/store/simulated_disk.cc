#include "tests/fault/store/simulated_disk.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "base/mutex.h"
#include "rocksdb/file_system.h"
#include "rocksdb/io_status.h"

namespace kvtier {
namespace {

using Kind = DiskOp::Kind;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using rocksdb::Slice;

// Without doubled and trailing slashes.
std::string Normal(const std::string& path) {
  std::string normal;
  for (const char c : path) {
    if (c != '/' || normal.empty() || normal.back() != '/') normal.push_back(c);
  }
  if (normal.size() > 1 && normal.back() == '/') normal.pop_back();
  return normal;
}

IOStatus NotFound(const std::string& path) { return IOStatus::PathNotFound(path); }

}  // namespace

class SimulatedDisk::Shared {
 public:
  explicit Shared(DiskState start) : state_(std::move(start)) {}

  // Applies what `make` returns for the state at that moment, unless it must fail.
  template <typename Make>
  IOStatus Change(Make make) {
    MutexLock lock(&mutex_);
    WaitWhile(holds_changes_);
    DiskOp op;
    IOStatus status = make(state_, &op);
    if (!status.ok()) return status;
    const size_t ordinal = changes_++;
    if (ordinal >= fail_begin_ && ordinal < fail_end_) {
      ++faults_;
      if (fault_ == Fault::kShortWrite && op.kind == Kind::kWrite) {
        op.data = std::make_shared<const std::string>(op.data->substr(0, op.data->size() / 2));
        Apply(std::move(op));
      }
      return fault_ == Fault::kNoSpace ? IOStatus::NoSpace("injected: disk full")
                                       : IOStatus::IOError("injected: the disk failed");
    }
    Apply(std::move(op));
    return IOStatus::OK();
  }

  // Calls `read` with the state.
  template <typename ReadState>
  auto Look(ReadState read) {
    MutexLock lock(&mutex_);
    return read(static_cast<const DiskState&>(state_));
  }

  IOStatus Read(DiskFileId file, uint64_t offset, size_t bytes, Slice* result, char* scratch) {
    MutexLock lock(&mutex_);
    WaitWhile(holds_reads_);
    const std::string& content = state_.Content(file);
    const size_t count =
        offset >= content.size() ? 0 : std::min<size_t>(bytes, content.size() - offset);
    if (count > 0) std::memcpy(scratch, content.data() + offset, count);
    *result = Slice(scratch, count);
    return IOStatus::OK();
  }

 private:
  friend class SimulatedDisk;

  void Apply(DiskOp op) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    state_.Apply(op);
    log_.push_back(std::move(op));
    changed_.SignalAll();
  }
  void WaitWhile(const bool& holds) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!holds) return;
    ++held_;
    changed_.SignalAll();
    while (holds) changed_.Wait(&mutex_);
    --held_;
  }

  mutable Mutex mutex_;
  CondVar changed_;
  DiskState state_ ABSL_GUARDED_BY(mutex_);
  std::vector<DiskOp> log_ ABSL_GUARDED_BY(mutex_);
  size_t changes_ ABSL_GUARDED_BY(mutex_) = 0;  // Asked for, those that failed included.
  size_t fail_begin_ ABSL_GUARDED_BY(mutex_) = SIZE_MAX;
  size_t fail_end_ ABSL_GUARDED_BY(mutex_) = SIZE_MAX;
  Fault fault_ ABSL_GUARDED_BY(mutex_) = Fault::kNoSpace;
  uint64_t faults_ ABSL_GUARDED_BY(mutex_) = 0;
  bool holds_changes_ ABSL_GUARDED_BY(mutex_) = false;
  bool holds_reads_ ABSL_GUARDED_BY(mutex_) = false;
  int held_ ABSL_GUARDED_BY(mutex_) = 0;
};

namespace {

using SharedPtr = std::shared_ptr<SimulatedDisk::Shared>;

class SimulatedReader final : public rocksdb::FSRandomAccessFile, public rocksdb::FSSequentialFile {
 public:
  SimulatedReader(SharedPtr disk, DiskFileId file) : disk_(std::move(disk)), file_(file) {}

  IOStatus Read(uint64_t offset, size_t bytes, const IOOptions&, Slice* result, char* scratch,
                IODebugContext*) const override {
    return disk_->Read(file_, offset, bytes, result, scratch);
  }
  IOStatus Read(size_t bytes, const IOOptions&, Slice* result, char* scratch,
                IODebugContext*) override {
    IOStatus status = disk_->Read(file_, position_, bytes, result, scratch);
    position_ += result->size();
    return status;
  }
  IOStatus Skip(uint64_t bytes) override {
    position_ += bytes;
    return IOStatus::OK();
  }
  IOStatus InvalidateCache(size_t, size_t) override { return IOStatus::OK(); }
  bool use_direct_io() const override { return false; }
  size_t GetRequiredBufferAlignment() const override { return 4096; }

 private:
  const SharedPtr disk_;
  const DiskFileId file_;
  uint64_t position_ = 0;
};

class SimulatedWriter final : public rocksdb::FSWritableFile {
 public:
  SimulatedWriter(SharedPtr disk, std::string path, DiskFileId file, uint64_t size, bool is_direct)
      : disk_(std::move(disk)),
        path_(std::move(path)),
        file_(file),
        is_direct_(is_direct),
        size_(size) {}

  using FSWritableFile::Append;
  using FSWritableFile::PositionedAppend;
  IOStatus Append(const Slice& data, const IOOptions& options, IODebugContext* context) override {
    return PositionedAppend(data, size_, options, context);
  }
  IOStatus PositionedAppend(const Slice& data, uint64_t offset, const IOOptions&,
                            IODebugContext*) override {
    IOStatus status = Change({.kind = Kind::kWrite,
                              .path = path_,
                              .file = file_,
                              .offset = offset,
                              .data = std::make_shared<const std::string>(data.ToString())});
    if (status.ok()) size_ = std::max<uint64_t>(size_, offset + data.size());
    return status;
  }
  IOStatus PositionedAppend(const Slice& data, uint64_t offset, const IOOptions& options,
                            const rocksdb::DataVerificationInfo&,
                            IODebugContext* context) override {
    return PositionedAppend(data, offset, options, context);
  }
  IOStatus Truncate(uint64_t size, const IOOptions&, IODebugContext*) override {
    IOStatus status =
        Change({.kind = Kind::kTruncate, .path = path_, .file = file_, .offset = size});
    if (status.ok()) size_ = size;
    return status;
  }
  IOStatus Sync(const IOOptions&, IODebugContext*) override {
    return Change({.kind = Kind::kSyncFile, .path = path_, .file = file_});
  }
  IOStatus Close(const IOOptions&, IODebugContext*) override { return IOStatus::OK(); }
  IOStatus Flush(const IOOptions&, IODebugContext*) override { return IOStatus::OK(); }
  bool IsSyncThreadSafe() const override { return true; }
  bool use_direct_io() const override { return is_direct_; }
  uint64_t GetFileSize(const IOOptions&, IODebugContext*) override { return size_; }
  IOStatus InvalidateCache(size_t, size_t) override { return IOStatus::OK(); }

 private:
  IOStatus Change(const DiskOp& op) {
    return disk_->Change([&](const DiskState&, DiskOp* out) {
      *out = op;
      return IOStatus::OK();
    });
  }

  const SharedPtr disk_;
  const std::string path_;
  const DiskFileId file_;
  const bool is_direct_;
  uint64_t size_;
};

class SimulatedFolder final : public rocksdb::FSDirectory {
 public:
  SimulatedFolder(SharedPtr disk, std::string path)
      : disk_(std::move(disk)), path_(std::move(path)) {}
  IOStatus Fsync(const IOOptions&, IODebugContext*) override {
    return disk_->Change([&](const DiskState&, DiskOp* op) {
      *op = {.kind = Kind::kSyncFolder, .path = path_};
      return IOStatus::OK();
    });
  }
  IOStatus Close(const IOOptions&, IODebugContext*) override { return IOStatus::OK(); }

 private:
  const SharedPtr disk_;
  const std::string path_;
};

class NoLogger final : public rocksdb::Logger {
 public:
  using rocksdb::Logger::Logv;
  void Logv(const char*, va_list) override {}
  size_t GetLogFileSize() const override { return 0; }
};

class NoLock final : public rocksdb::FileLock {};

class SimulatedFileSystem final : public rocksdb::FileSystem {
 public:
  explicit SimulatedFileSystem(SharedPtr disk) : disk_(std::move(disk)) {}

  const char* Name() const override { return "SimulatedFileSystem"; }

  IOStatus NewSequentialFile(const std::string& name, const rocksdb::FileOptions&,
                             std::unique_ptr<rocksdb::FSSequentialFile>* result,
                             IODebugContext*) override {
    return Open(Normal(name), [&](DiskFileId file, uint64_t) {
      *result = std::make_unique<SimulatedReader>(disk_, file);
    });
  }
  IOStatus NewRandomAccessFile(const std::string& name, const rocksdb::FileOptions&,
                               std::unique_ptr<rocksdb::FSRandomAccessFile>* result,
                               IODebugContext*) override {
    return Open(Normal(name), [&](DiskFileId file, uint64_t) {
      *result = std::make_unique<SimulatedReader>(disk_, file);
    });
  }
  IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                           std::unique_ptr<rocksdb::FSWritableFile>* result,
                           IODebugContext*) override {
    const std::string path = Normal(name);
    DiskFileId file = 0;
    IOStatus status = disk_->Change([&](const DiskState& state, DiskOp* op) {
      if (!state.HasFolder(ParentOf(path))) return NotFound(path);
      file = state.next_file();
      *op = {.kind = Kind::kCreate, .path = path, .file = file};
      return IOStatus::OK();
    });
    if (status.ok()) {
      *result = std::make_unique<SimulatedWriter>(disk_, path, file, 0, options.use_direct_writes);
    }
    return status;
  }
  IOStatus ReopenWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                              std::unique_ptr<rocksdb::FSWritableFile>* result,
                              IODebugContext*) override {
    const std::string path = Normal(name);
    return Open(path, [&](DiskFileId file, uint64_t size) {
      *result =
          std::make_unique<SimulatedWriter>(disk_, path, file, size, options.use_direct_writes);
    });
  }
  IOStatus NewDirectory(const std::string& name, const IOOptions&,
                        std::unique_ptr<rocksdb::FSDirectory>* result, IODebugContext*) override {
    const std::string path = Normal(name);
    if (!disk_->Look([&](const DiskState& state) { return state.HasFolder(path); })) {
      return NotFound(path);
    }
    *result = std::make_unique<SimulatedFolder>(disk_, path);
    return IOStatus::OK();
  }
  IOStatus FileExists(const std::string& name, const IOOptions&, IODebugContext*) override {
    const std::string path = Normal(name);
    return disk_->Look([&](const DiskState& state) {
      return state.names().contains(path) || state.HasFolder(path) ? IOStatus::OK()
                                                                   : IOStatus::NotFound(path);
    });
  }
  IOStatus GetChildren(const std::string& folder, const IOOptions&,
                       std::vector<std::string>* result, IODebugContext*) override {
    const std::string path = Normal(folder);
    return disk_->Look([&](const DiskState& state) {
      if (!state.HasFolder(path)) return NotFound(path);
      *result = state.List(path);
      return IOStatus::OK();
    });
  }
  IOStatus DeleteFile(const std::string& name, const IOOptions&, IODebugContext*) override {
    return ChangeName(Kind::kRemove, Normal(name), "");
  }
  IOStatus Truncate(const std::string& name, size_t size, const IOOptions&,
                    IODebugContext*) override {
    const std::string path = Normal(name);
    return disk_->Change([&](const DiskState& state, DiskOp* op) {
      const auto found = state.names().find(path);
      if (found == state.names().end()) return NotFound(path);
      *op = {.kind = Kind::kTruncate, .path = path, .file = found->second, .offset = size};
      return IOStatus::OK();
    });
  }
  IOStatus CreateDir(const std::string& name, const IOOptions&, IODebugContext*) override {
    const std::string path = Normal(name);
    return disk_->Change([&](const DiskState& state, DiskOp* op) {
      if (state.HasFolder(path)) return IOStatus::IOError(path, "exists");
      if (!state.HasFolder(ParentOf(path))) return NotFound(path);
      *op = {.kind = Kind::kMakeFolder, .path = path};
      return IOStatus::OK();
    });
  }
  IOStatus CreateDirIfMissing(const std::string& name, const IOOptions& options,
                              IODebugContext* context) override {
    const std::string path = Normal(name);
    const bool is_there =
        disk_->Look([&](const DiskState& state) { return state.HasFolder(path); });
    return is_there ? IOStatus::OK() : CreateDir(name, options, context);
  }
  IOStatus DeleteDir(const std::string& name, const IOOptions&, IODebugContext*) override {
    return IOStatus::NotSupported(name);
  }
  IOStatus GetFileSize(const std::string& name, const IOOptions&, uint64_t* size,
                       IODebugContext*) override {
    return Open(Normal(name), [&](DiskFileId, uint64_t bytes) { *size = bytes; });
  }
  IOStatus GetFileModificationTime(const std::string& name, const IOOptions&, uint64_t* time,
                                   IODebugContext*) override {
    *time = 0;
    return Open(Normal(name), [](DiskFileId, uint64_t) {});
  }
  IOStatus RenameFile(const std::string& from, const std::string& to, const IOOptions&,
                      IODebugContext*) override {
    return ChangeName(Kind::kRename, Normal(from), Normal(to));
  }
  IOStatus LinkFile(const std::string& from, const std::string& to, const IOOptions&,
                    IODebugContext*) override {
    return ChangeName(Kind::kLink, Normal(from), Normal(to));
  }
  IOStatus AreFilesSame(const std::string& one, const std::string& two, const IOOptions&,
                        bool* result, IODebugContext*) override {
    return disk_->Look([&](const DiskState& state) {
      const auto first = state.names().find(Normal(one));
      const auto second = state.names().find(Normal(two));
      if (first == state.names().end()) return NotFound(one);
      if (second == state.names().end()) return NotFound(two);
      *result = first->second == second->second;
      return IOStatus::OK();
    });
  }
  IOStatus LockFile(const std::string&, const IOOptions&, rocksdb::FileLock** lock,
                    IODebugContext*) override {
    *lock = new NoLock();
    return IOStatus::OK();
  }
  IOStatus UnlockFile(rocksdb::FileLock* lock, const IOOptions&, IODebugContext*) override {
    delete lock;
    return IOStatus::OK();
  }
  IOStatus NewLogger(const std::string&, const IOOptions&, std::shared_ptr<rocksdb::Logger>* result,
                     IODebugContext*) override {
    *result = std::make_shared<NoLogger>();
    return IOStatus::OK();
  }
  IOStatus GetTestDirectory(const IOOptions&, std::string*, IODebugContext*) override {
    return IOStatus::NotSupported("GetTestDirectory");
  }
  IOStatus GetAbsolutePath(const std::string& path, const IOOptions&, std::string* absolute,
                           IODebugContext*) override {
    *absolute = Normal(path);
    return IOStatus::OK();
  }
  IOStatus IsDirectory(const std::string& name, const IOOptions&, bool* result,
                       IODebugContext*) override {
    const std::string path = Normal(name);
    *result = disk_->Look([&](const DiskState& state) { return state.HasFolder(path); });
    return IOStatus::OK();
  }

 private:
  // Calls `use` with the file of this name and its size.
  template <typename Use>
  IOStatus Open(const std::string& path, Use use) {
    return disk_->Look([&](const DiskState& state) {
      const auto found = state.names().find(path);
      if (found == state.names().end()) return NotFound(path);
      use(found->second, state.Content(found->second).size());
      return IOStatus::OK();
    });
  }
  IOStatus ChangeName(Kind kind, const std::string& path, const std::string& target) {
    return disk_->Change([&](const DiskState& state, DiskOp* op) {
      const auto found = state.names().find(path);
      if (found == state.names().end()) return NotFound(path);
      if (!target.empty() && !state.HasFolder(ParentOf(target))) return NotFound(target);
      if (kind == Kind::kLink && state.names().contains(target)) {
        return IOStatus::IOError(target, "exists");
      }
      if (kind == Kind::kRename && ParentOf(path) != ParentOf(target)) {
        return IOStatus::NotSupported("rename to another folder", target);
      }
      *op = {.kind = kind, .path = path, .target = target, .file = found->second};
      return IOStatus::OK();
    });
  }

  const SharedPtr disk_;
};

}  // namespace

SimulatedDisk::SimulatedDisk(DiskState start)
    : shared_(std::make_shared<Shared>(std::move(start))),
      env_(rocksdb::NewCompositeEnv(std::make_shared<SimulatedFileSystem>(shared_))) {}

SimulatedDisk::~SimulatedDisk() = default;

std::vector<DiskOp> SimulatedDisk::log() const {
  MutexLock lock(&shared_->mutex_);
  return shared_->log_;
}

size_t SimulatedDisk::op_count() const {
  MutexLock lock(&shared_->mutex_);
  return shared_->log_.size();
}

bool SimulatedDisk::AwaitChange(DiskOp::Kind kind, absl::string_view path_end,
                                absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  MutexLock lock(&shared_->mutex_);
  for (size_t seen = 0;;) {
    for (; seen < shared_->log_.size(); ++seen) {
      const DiskOp& op = shared_->log_[seen];
      if (op.kind == kind && absl::EndsWith(op.path, path_end)) return true;
    }
    if (absl::Now() >= deadline) return false;
    shared_->changed_.WaitWithTimeout(&shared_->mutex_, deadline - absl::Now());
  }
}

void SimulatedDisk::FailOnce(size_t ordinal, Fault fault) {
  MutexLock lock(&shared_->mutex_);
  shared_->fail_begin_ = shared_->changes_ + ordinal;
  shared_->fail_end_ = shared_->fail_begin_ + 1;
  shared_->fault_ = fault;
}

void SimulatedDisk::FailFrom(size_t ordinal, Fault fault) {
  MutexLock lock(&shared_->mutex_);
  shared_->fail_begin_ = shared_->changes_ + ordinal;
  shared_->fail_end_ = SIZE_MAX;
  shared_->fault_ = fault;
}

void SimulatedDisk::Heal() {
  MutexLock lock(&shared_->mutex_);
  shared_->fail_begin_ = shared_->fail_end_ = SIZE_MAX;
}

uint64_t SimulatedDisk::fault_count() const {
  MutexLock lock(&shared_->mutex_);
  return shared_->faults_;
}

void SimulatedDisk::HoldChanges() {
  MutexLock lock(&shared_->mutex_);
  shared_->holds_changes_ = true;
}

void SimulatedDisk::HoldReads() {
  MutexLock lock(&shared_->mutex_);
  shared_->holds_reads_ = true;
}

bool SimulatedDisk::AwaitHeld(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  MutexLock lock(&shared_->mutex_);
  while (shared_->held_ == 0) {
    if (absl::Now() >= deadline) return false;
    shared_->changed_.WaitWithTimeout(&shared_->mutex_, deadline - absl::Now());
  }
  return true;
}

void SimulatedDisk::Release() {
  MutexLock lock(&shared_->mutex_);
  shared_->holds_changes_ = shared_->holds_reads_ = false;
  shared_->changed_.SignalAll();
}

uint64_t SimulatedDisk::BytesOf(absl::string_view path_end) const {
  return shared_->Look([&](const DiskState& state) {
    uint64_t bytes = 0;
    for (const auto& [path, file] : state.names()) {
      if (absl::EndsWith(path, path_end)) bytes += state.Content(file).size();
    }
    return bytes;
  });
}

DiskState SimulatedDisk::state() const {
  MutexLock lock(&shared_->mutex_);
  return shared_->state_;
}

}  // namespace kvtier
