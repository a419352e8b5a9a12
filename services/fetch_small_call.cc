#include "services/fetch_small_call.h"

#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/limits.h"
#include "kvtier/v1/store.pb.h"
#include "services/call_environment.h"
#include "services/fetch_source.h"
#include "services/load_times.h"
#include "services/status_grpc.h"
#include "services/unary_call.h"

namespace kvtier {
namespace {

// One FetchSmall. What lies in host memory is answered in gRPC's callback, without a change of
// threads; the rest on the pool, as is letting go of what may remove bytes from a disk.
class FetchSmall : public std::enable_shared_from_this<FetchSmall> {
 public:
  FetchSmall(CallEnvironment& environment, UnaryCall& call, v1::FetchSmallResponse& response)
      : environment_(environment),
        call_(call),
        response_(response),
        start_(environment.clock().Now()),
        source_(environment) {}

  void Run(const v1::FetchRequest& request) {
    absl::Status status = source_.Open(call_.tenant(), request);
    if (status.ok() && !source_.fits_in_header()) {
      status = absl::OutOfRangeError(absl::StrCat(source_.plan().payload_bytes(),
                                                  " bytes, more than small_fetch_bytes_max ",
                                                  limits::kSmallFetchBytesMax, ": use Fetch"));
    }
    // Whoever hears that asks with Fetch, which counts; also of a range past the end.
    if (absl::IsOutOfRange(status)) source_.LeaveUncounted();
    if (status.ok()) {
      *response_.mutable_header() = source_.Header();
      if (!source_.AddFramesFromMemory(*response_.mutable_header())) {
        load_source_ = LoadTimes::Source::kDisk;
        environment_.Schedule([self = shared_from_this()] {
          const absl::Status read = self->source_.AddFrames(*self->response_.mutable_header());
          self->source_.Release();
          self->End(read);
        });
        return;
      }
    }
    if (source_.TryRelease()) {
      End(status);
      return;
    }
    environment_.Schedule([self = shared_from_this(), status] {
      self->source_.Release();
      self->End(status);
    });
  }

 private:
  void End(absl::Status status) {
    if (status.ok()) {
      const uint64_t bytes = response_.header().payload_bytes();
      environment_.metrics().store_fetch_bytes.Increment(static_cast<double>(bytes));
      environment_.load_times().Record(load_source_, bytes, environment_.clock().Now() - start_);
    } else {
      response_.Clear();
    }
    call_.End(WithRetryIfFull(std::move(status)));  // Others' segments will go.
  }

  CallEnvironment& environment_;
  UnaryCall& call_;
  v1::FetchSmallResponse& response_;
  const absl::Time start_;
  LoadTimes::Source load_source_ = LoadTimes::Source::kHost;
  FetchSource source_;
};

}  // namespace

grpc::ServerUnaryReactor* StartFetchSmallCall(CallEnvironment& environment,
                                              const grpc::ServerContextBase& context,
                                              const v1::FetchSmallRequest& request,
                                              v1::FetchSmallResponse& response) {
  auto* const call = new UnaryCall("FetchSmall", environment.metrics(), environment.clock());
  if (call->Admit(environment.slots(), context)) {
    std::make_shared<FetchSmall>(environment, *call, response)->Run(request.fetch());
  }
  return call;
}

}  // namespace kvtier
