#include "cuda/nccl/nccl_communicator.h"

#include <atomic>
#include <cstring>
#include <deque>
#include <utility>

#include <cuda_runtime_api.h>
#include <nccl.h>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/status_macros.h"
#include "cuda/cuda_error.h"

namespace kvtier {
namespace {

static_assert(NCCL_VERSION_CODE >= NCCL_VERSION(2, 18, 0),
              "non-blocking groups and ncclCommFinalize behave differently before 2.18");

// Between two looks at what NCCL and the device are doing: a layer takes milliseconds.
constexpr absl::Duration kLook = absl::Microseconds(100);

absl::Status FromCuda(cudaError_t error, absl::string_view call) {
  if (error == cudaSuccess) return absl::OkStatus();
  cudaGetLastError();  // Read and cleared: the next call's error is its own.
  return absl::Status(CodeOfCudaError(error), absl::StrCat(call, ": ", cudaGetErrorString(error)));
}

// ncclInProgress is no error: the call goes on by itself.
absl::Status FromNccl(ncclResult_t result, absl::string_view call) {
  if (result == ncclSuccess || result == ncclInProgress) return absl::OkStatus();
  const std::string text =
      absl::StrCat(call, ": ", ncclGetErrorString(result), ": ", ncclGetLastError(nullptr));
  switch (result) {
    case ncclRemoteError:
    case ncclSystemError:  // Mostly sockets.
      return absl::UnavailableError(text);
    case ncclInvalidArgument:
      return absl::InvalidArgumentError(text);
    default:
      return absl::InternalError(text);
  }
}

// The calling thread uses this GPU until the end of the scope.
class OnDevice {
 public:
  explicit OnDevice(int ordinal) {
    cudaGetDevice(&before_);
    status_ = FromCuda(cudaSetDevice(ordinal), absl::StrCat("cudaSetDevice(", ordinal, ")"));
  }
  ~OnDevice() { cudaSetDevice(before_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  const absl::Status& status() const { return status_; }

 private:
  int before_ = 0;
  absl::Status status_;
};

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(int ordinal, int rank, int size) : ordinal_(ordinal), rank_(rank), size_(size) {}

  ~NcclCommunicator() override {
    const OnDevice on(ordinal_);
    // Destroying politely would wait for peers, which may have been gone for hours.
    Destroy();
    for (const Group& group : groups_) {
      if (group.done != nullptr) cudaEventDestroy(group.done);
    }
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  absl::Status Connect(const ncclUniqueId& id, absl::Time deadline, const CancelToken& cancel) {
    const OnDevice on(ordinal_);
    KVTIER_RETURN_IF_ERROR(on.status());
    KVTIER_RETURN_IF_ERROR(FromCuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
                                    "cudaStreamCreateWithFlags"));
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    KVTIER_RETURN_IF_ERROR(
        Fail(FromNccl(ncclCommInitRankConfig(&communicator_, size_, id, rank_, &config),
                      "ncclCommInitRankConfig")));
    return AwaitCalls("ncclCommInitRankConfig", deadline, &cancel);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  absl::Status GroupStart() override {
    KVTIER_RETURN_IF_ERROR(error_);
    KVTIER_RETURN_IF_ERROR(Fail(FromNccl(ncclGroupStart(), "ncclGroupStart")));
    in_group_ = true;
    return absl::OkStatus();
  }

  absl::Status Send(const void* from, uint64_t bytes, int to_rank) override {
    KVTIER_RETURN_IF_ERROR(error_);
    return Fail(
        FromNccl(ncclSend(from, bytes, ncclUint8, to_rank, communicator_, stream_), "ncclSend"));
  }

  absl::Status Receive(void* to, uint64_t bytes, int from_rank) override {
    KVTIER_RETURN_IF_ERROR(error_);
    return Fail(
        FromNccl(ncclRecv(to, bytes, ncclUint8, from_rank, communicator_, stream_), "ncclRecv"));
  }

  absl::Status Broadcast(void* buffer, uint64_t bytes, int root) override {
    KVTIER_RETURN_IF_ERROR(error_);
    return Fail(
        FromNccl(ncclBroadcast(buffer, buffer, bytes, ncclUint8, root, communicator_, stream_),
                 "ncclBroadcast"));
  }

  absl::StatusOr<uint64_t> GroupEnd(absl::Time deadline) override {
    KVTIER_RETURN_IF_ERROR(error_);
    const OnDevice on(ordinal_);
    KVTIER_RETURN_IF_ERROR(Fail(on.status()));
    in_group_ = false;
    KVTIER_RETURN_IF_ERROR(Fail(FromNccl(ncclGroupEnd(), "ncclGroupEnd")));
    // The event may be recorded only when NCCL has put the group into the stream; the first time
    // that needs connections to the peers.
    KVTIER_RETURN_IF_ERROR(AwaitCalls("ncclGroupEnd", deadline, nullptr));
    groups_.push_back(Group{.number = ++last_group_, .done = nullptr});
    KVTIER_RETURN_IF_ERROR(
        Fail(FromCuda(cudaEventCreateWithFlags(&groups_.back().done, cudaEventDisableTiming),
                      "cudaEventCreateWithFlags")));
    KVTIER_RETURN_IF_ERROR(
        Fail(FromCuda(cudaEventRecord(groups_.back().done, stream_), "cudaEventRecord")));
    return last_group_;
  }

  absl::Status Wait(uint64_t number, absl::Time deadline) override {
    const OnDevice on(ordinal_);
    if (!on.status().ok()) return Fail(on.status());
    KVTIER_RETURN_IF_ERROR(error_);
    while (!groups_.empty() && groups_.front().number <= number) {
      const cudaError_t state = cudaEventQuery(groups_.front().done);
      if (state == cudaSuccess) {
        cudaEventDestroy(groups_.front().done);
        groups_.pop_front();
        continue;
      }
      if (state != cudaErrorNotReady) return Fail(FromCuda(state, "cudaEventQuery"));
      cudaGetLastError();  // "Not ready" counts as an error, and later calls would report it.
      KVTIER_RETURN_IF_ERROR(Look("waiting for the device", deadline, nullptr));
    }
    return aborting_ ? Fail(absl::CancelledError("aborted")) : absl::OkStatus();
  }

  absl::Status QueryError() override {
    KVTIER_RETURN_IF_ERROR(error_);
    if (communicator_ == nullptr) return absl::OkStatus();
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(communicator_, &state);
    KVTIER_RETURN_IF_ERROR(FromNccl(asked, "ncclCommGetAsyncError"));
    return FromNccl(state, "NCCL");
  }

  void Abort() override { aborting_ = true; }

 private:
  struct Group {
    uint64_t number = 0;
    cudaEvent_t done = nullptr;
  };

  // The first error stays, and nothing of NCCL's runs any more when this returns it.
  absl::Status Fail(absl::Status status) {
    if (status.ok() || !error_.ok()) return error_.ok() ? status : error_;
    error_ = std::move(status);
    Destroy();
    return error_;
  }

  // Kernels of an aborted communicator end by themselves; after that the stream is empty.
  void Destroy() {
    if (communicator_ == nullptr) return;
    // An open group is a state of this thread and would swallow what it asks of NCCL later.
    if (std::exchange(in_group_, false)) ncclGroupEnd();
    ncclCommAbort(std::exchange(communicator_, nullptr));
    if (stream_ != nullptr) cudaStreamSynchronize(stream_);
    cudaGetLastError();
  }

  // One look at everything that may end a wait; sleeps a little if nothing has.
  absl::Status Look(absl::string_view doing, absl::Time deadline, const CancelToken* cancel) {
    if (aborting_ || (cancel != nullptr && cancel->cancelled())) {
      return Fail(absl::CancelledError(absl::StrCat(doing, ": aborted")));
    }
    KVTIER_RETURN_IF_ERROR(Fail(QueryError()));
    if (Clock::Real().Now() >= deadline) {
      return Fail(absl::DeadlineExceededError(absl::StrCat(doing, ": not done in time")));
    }
    Clock::Real().SleepFor(kLook);
    return absl::OkStatus();
  }

  // Until the calls that NCCL has taken are carried out.
  absl::Status AwaitCalls(absl::string_view call, absl::Time deadline, const CancelToken* cancel) {
    while (true) {
      ncclResult_t state = ncclSuccess;
      const ncclResult_t asked = ncclCommGetAsyncError(communicator_, &state);
      KVTIER_RETURN_IF_ERROR(Fail(FromNccl(asked, "ncclCommGetAsyncError")));
      KVTIER_RETURN_IF_ERROR(Fail(FromNccl(state, call)));
      if (state == ncclSuccess) return absl::OkStatus();
      KVTIER_RETURN_IF_ERROR(Look(call, deadline, cancel));
    }
  }

  const int ordinal_;
  const int rank_;
  const int size_;
  cudaStream_t stream_ = nullptr;
  ncclComm_t communicator_ = nullptr;  // Null after an error.
  std::deque<Group> groups_;           // Not yet seen to be done.
  uint64_t last_group_ = 0;
  bool in_group_ = false;
  absl::Status error_;
  std::atomic<bool> aborting_{false};
};

class NcclFactory final : public CommunicatorFactory {
 public:
  explicit NcclFactory(int ordinal) : ordinal_(ordinal) {}

  absl::StatusOr<std::string> MakeUniqueId() override {
    ncclUniqueId id;
    KVTIER_RETURN_IF_ERROR(FromNccl(ncclGetUniqueId(&id), "ncclGetUniqueId"));
    return std::string(id.internal, sizeof(id.internal));
  }

  absl::StatusOr<std::unique_ptr<Communicator>> Create(const Membership& membership,
                                                       absl::Time deadline,
                                                       const CancelToken& cancel) override {
    ncclUniqueId id;
    if (membership.unique_id.size() != sizeof(id.internal)) {
      return absl::InvalidArgumentError(absl::StrCat("a unique id of ", membership.unique_id.size(),
                                                     " bytes, not ", sizeof(id.internal)));
    }
    if (membership.rank < 0 || membership.rank >= membership.size) {
      return absl::InvalidArgumentError(
          absl::StrCat("rank ", membership.rank, " of ", membership.size));
    }
    std::memcpy(id.internal, membership.unique_id.data(), sizeof(id.internal));
    auto made = std::make_unique<NcclCommunicator>(ordinal_, membership.rank, membership.size);
    KVTIER_RETURN_IF_ERROR(made->Connect(id, deadline, cancel));
    return made;
  }

 private:
  const int ordinal_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<CommunicatorFactory>> MakeNcclFactory(int ordinal) {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    cudaGetLastError();
    return absl::Status(CodeOfCudaProbeError(error),
                        absl::StrCat("cudaGetDeviceCount: ", cudaGetErrorString(error)));
  }
  if (count == 0) return absl::UnavailableError("this machine has no GPU");
  if (ordinal < 0 || ordinal >= count) {
    return absl::OutOfRangeError(absl::StrCat("GPU ", ordinal, ": this machine has ", count));
  }
  return std::make_unique<NcclFactory>(ordinal);
}

}  // namespace kvtier
