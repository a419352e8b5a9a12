#include "services/call_counter.h"

#include "absl/strings/match.h"

namespace kvtier {
namespace {

// gRPC destroys it with the call.
class CountedCall final : public grpc::experimental::Interceptor {
 public:
  explicit CountedCall(DrainSignal* drain) : drain_(drain) {}
  ~CountedCall() override {
    if (drain_ != nullptr) drain_->Leave();
  }
  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    methods->Proceed();
  }

 private:
  DrainSignal* const drain_;  // Null: not counted.
};

class CallCounter final : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  explicit CallCounter(DrainSignal& drain) : drain_(drain) {}

  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo* call) override {
    const bool is_ours = absl::StartsWith(call->method(), "/kvtier.");
    return new CountedCall(is_ours && drain_.Enter() ? &drain_ : nullptr);
  }

 private:
  DrainSignal& drain_;
};

}  // namespace

std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> MakeCallCounter(
    DrainSignal& drain) {
  return std::make_unique<CallCounter>(drain);
}

}  // namespace kvtier
