#include "cuda/gemm.h"

#include <utility>

namespace kvtier {
namespace {

class PlainGemm final : public Gemm {
 public:
  explicit PlainGemm(std::shared_ptr<Device> device) : device_(std::move(device)) {}
  absl::Status Run(const GemmParams& params) override {
    return device_->Check(LaunchPlainGemm(params, device_->stream()), "linear");
  }
  absl::StatusOr<uint64_t> WorkspaceBytes(const GemmParams& /*params*/) override {
    return uint64_t{0};
  }

 private:
  std::shared_ptr<Device> device_;
};

}  // namespace

std::unique_ptr<Gemm> MakePlainGemm(std::shared_ptr<Device> device) {
  return std::make_unique<PlainGemm>(std::move(device));
}

}  // namespace kvtier
