#include "tests/fault/store/fault_env.h"

#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "base/mutex.h"
#include "rocksdb/file_system.h"
#include "rocksdb/io_status.h"

namespace kvtier {

struct FaultEnv::State {
  Mutex mutex;
  int64_t writes ABSL_GUARDED_BY(mutex) = 0;
  int64_t faults ABSL_GUARDED_BY(mutex) = 0;
  int64_t fail_begin ABSL_GUARDED_BY(mutex) = -1;  // -1: no fault is planned.
  int64_t fail_end ABSL_GUARDED_BY(mutex) = -1;
  Fault fault ABSL_GUARDED_BY(mutex) = Fault::kNoSpace;

  rocksdb::IOStatus Write() {
    MutexLock lock(&mutex);
    const int64_t ordinal = writes++;
    if (fail_begin < 0 || ordinal < fail_begin || ordinal >= fail_end) {
      return rocksdb::IOStatus::OK();
    }
    ++faults;
    return fault == Fault::kNoSpace ? rocksdb::IOStatus::NoSpace("injected: disk full")
                                    : rocksdb::IOStatus::IOError("injected: write failed");
  }
};

namespace {

using StatePtr = std::shared_ptr<FaultEnv::State>;

class FaultFile final : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  FaultFile(std::unique_ptr<rocksdb::FSWritableFile> file, StatePtr state)
      : FSWritableFileOwnerWrapper(std::move(file)), state_(std::move(state)) {}

  rocksdb::IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& options,
                           rocksdb::IODebugContext* context) override {
    rocksdb::IOStatus status = state_->Write();
    return status.ok() ? target()->Append(data, options, context) : status;
  }
  rocksdb::IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& options,
                           const rocksdb::DataVerificationInfo& info,
                           rocksdb::IODebugContext* context) override {
    rocksdb::IOStatus status = state_->Write();
    return status.ok() ? target()->Append(data, options, info, context) : status;
  }
  // Direct writes.
  rocksdb::IOStatus PositionedAppend(const rocksdb::Slice& data, uint64_t offset,
                                     const rocksdb::IOOptions& options,
                                     rocksdb::IODebugContext* context) override {
    rocksdb::IOStatus status = state_->Write();
    return status.ok() ? target()->PositionedAppend(data, offset, options, context) : status;
  }
  rocksdb::IOStatus PositionedAppend(const rocksdb::Slice& data, uint64_t offset,
                                     const rocksdb::IOOptions& options,
                                     const rocksdb::DataVerificationInfo& info,
                                     rocksdb::IODebugContext* context) override {
    rocksdb::IOStatus status = state_->Write();
    return status.ok() ? target()->PositionedAppend(data, offset, options, info, context) : status;
  }
  rocksdb::IOStatus Sync(const rocksdb::IOOptions&, rocksdb::IODebugContext*) override {
    return state_->Write();
  }
  rocksdb::IOStatus Fsync(const rocksdb::IOOptions&, rocksdb::IODebugContext*) override {
    return state_->Write();
  }
  rocksdb::IOStatus RangeSync(uint64_t, uint64_t, const rocksdb::IOOptions&,
                              rocksdb::IODebugContext*) override {
    return rocksdb::IOStatus::OK();
  }

 private:
  const StatePtr state_;
};

class NoSyncDirectory final : public rocksdb::FSDirectory {
 public:
  rocksdb::IOStatus Fsync(const rocksdb::IOOptions&, rocksdb::IODebugContext*) override {
    return rocksdb::IOStatus::OK();
  }
};

class NoSyncRandomRWFile final : public rocksdb::FSRandomRWFileOwnerWrapper {
 public:
  using FSRandomRWFileOwnerWrapper::FSRandomRWFileOwnerWrapper;
  rocksdb::IOStatus Sync(const rocksdb::IOOptions&, rocksdb::IODebugContext*) override {
    return rocksdb::IOStatus::OK();
  }
  rocksdb::IOStatus Fsync(const rocksdb::IOOptions&, rocksdb::IODebugContext*) override {
    return rocksdb::IOStatus::OK();
  }
};

class FaultFileSystem final : public rocksdb::FileSystemWrapper {
 public:
  explicit FaultFileSystem(StatePtr state)
      : FileSystemWrapper(rocksdb::FileSystem::Default()), state_(std::move(state)) {}

  const char* Name() const override { return "FaultFileSystem"; }

  rocksdb::IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                                    std::unique_ptr<rocksdb::FSWritableFile>* file,
                                    rocksdb::IODebugContext* context) override {
    return Wrap(name, file,
                [&] { return target()->NewWritableFile(name, options, file, context); });
  }
  rocksdb::IOStatus ReopenWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                                       std::unique_ptr<rocksdb::FSWritableFile>* file,
                                       rocksdb::IODebugContext* context) override {
    return Wrap(name, file,
                [&] { return target()->ReopenWritableFile(name, options, file, context); });
  }
  rocksdb::IOStatus NewRandomRWFile(const std::string& name, const rocksdb::FileOptions& options,
                                    std::unique_ptr<rocksdb::FSRandomRWFile>* file,
                                    rocksdb::IODebugContext* context) override {
    rocksdb::IOStatus status = target()->NewRandomRWFile(name, options, file, context);
    if (status.ok()) *file = std::make_unique<NoSyncRandomRWFile>(std::move(*file));
    return status;
  }
  rocksdb::IOStatus NewDirectory(const std::string&, const rocksdb::IOOptions&,
                                 std::unique_ptr<rocksdb::FSDirectory>* directory,
                                 rocksdb::IODebugContext*) override {
    *directory = std::make_unique<NoSyncDirectory>();
    return rocksdb::IOStatus::OK();
  }

 private:
  template <typename Create>
  rocksdb::IOStatus Wrap(const std::string& name, std::unique_ptr<rocksdb::FSWritableFile>* file,
                         Create create) {
    if (absl::StrContains(name, "/LOG")) return create();
    rocksdb::IOStatus status = state_->Write();
    if (status.ok()) status = create();
    if (status.ok()) *file = std::make_unique<FaultFile>(std::move(*file), state_);
    return status;
  }

  const StatePtr state_;
};

}  // namespace

FaultEnv::FaultEnv()
    : state_(std::make_shared<State>()),
      env_(rocksdb::NewCompositeEnv(std::make_shared<FaultFileSystem>(state_))) {}

FaultEnv::~FaultEnv() = default;

int64_t FaultEnv::write_count() const {
  MutexLock lock(&state_->mutex);
  return state_->writes;
}

void FaultEnv::FailFrom(int64_t ordinal, Fault fault) {
  MutexLock lock(&state_->mutex);
  state_->fail_begin = state_->writes + ordinal;
  state_->fail_end = INT64_MAX;
  state_->fault = fault;
}

void FaultEnv::FailOnce(int64_t ordinal, Fault fault) {
  MutexLock lock(&state_->mutex);
  state_->fail_begin = state_->writes + ordinal;
  state_->fail_end = state_->fail_begin + 1;
  state_->fault = fault;
}

void FaultEnv::Heal() {
  MutexLock lock(&state_->mutex);
  state_->fail_begin = state_->fail_end = -1;
}

int64_t FaultEnv::fault_count() const {
  MutexLock lock(&state_->mutex);
  return state_->faults;
}

}  // namespace kvtier
