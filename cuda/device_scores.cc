#include "cuda/device_scores.h"

#include <cstdint>
#include <limits>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "cuda/math/order_key.h"
#include "cuda/score_table.h"

namespace kvtier {
namespace {

class DeviceScores final : public BackendScores {
 public:
  DeviceScores(std::shared_ptr<Device> device, const ScoreShape& shape, DeviceMemory memory)
      : BackendScores(shape), device_(std::move(device)), memory_(std::move(memory)) {}

  absl::StatusOr<ScoreVerdict> Inspect(uint64_t first_token) const override {
    KVTIER_RETURN_IF_ERROR(device_->Enter());
    KVTIER_ASSIGN_OR_RETURN(const DeviceMemory findings,
                            DeviceMemory::Allocate(device_, sizeof(ScoreFindings)));
    KVTIER_RETURN_IF_ERROR(device_->Zero(findings.as<void>(), sizeof(ScoreFindings)));
    KVTIER_RETURN_IF_ERROR(
        device_->Check(LaunchInspectScores({.scores = scores(),
                                            .rows = static_cast<int64_t>(shape().rows()),
                                            .tokens = static_cast<int64_t>(shape().tokens),
                                            .first_token = static_cast<int64_t>(first_token),
                                            .findings = findings.as<ScoreFindings>()},
                                           device_->stream()),
                       "inspect scores"));
    ScoreFindings found;
    KVTIER_RETURN_IF_ERROR(device_->CopyOut(findings.as<void>(), &found, sizeof(found)));
    ScoreVerdict verdict;
    verdict.best = ValueOfOrderKey(found.best);
    if (found.not_finite == 0) return verdict;
    verdict.not_finite = ~found.not_finite;
    KVTIER_RETURN_IF_ERROR(
        device_->CopyOut(scores() + *verdict.not_finite, &verdict.not_finite_score, sizeof(float)));
    return verdict;
  }

  absl::StatusOr<ScoreTable> Read() const override {
    KVTIER_RETURN_IF_ERROR(device_->Enter());
    ScoreTable table = ScoreTable::Create(shape().layers, shape().kv_heads, shape().tokens);
    KVTIER_RETURN_IF_ERROR(
        device_->CopyOut(scores(), table.log_scores.data(), table.pairs() * sizeof(float)));
    return table;
  }

  const float* scores() const { return memory_.as<float>(); }
  const Device& device() const { return *device_; }

 protected:
  float* data() override { return memory_.as<float>(); }

  absl::Status RunWrite(std::span<const float> log_scores) override {
    KVTIER_RETURN_IF_ERROR(device_->Enter());
    return device_->CopyIn(log_scores.data(), memory_.as<void>(), log_scores.size_bytes());
  }

  absl::Status RunFill(uint64_t begin, uint64_t end, std::span<const float> values) override {
    KVTIER_RETURN_IF_ERROR(device_->Enter());
    KVTIER_ASSIGN_OR_RETURN(const DeviceMemory on_device, DeviceMemory::Of(device_, values));
    return device_->Check(LaunchFillScores({.scores = memory_.as<float>(),
                                            .values = on_device.as<float>(),
                                            .rows = static_cast<int64_t>(shape().rows()),
                                            .tokens = static_cast<int64_t>(shape().tokens),
                                            .begin = static_cast<int64_t>(begin),
                                            .count = static_cast<int64_t>(end - begin)},
                                           device_->stream()),
                          "fill scores");
  }

 private:
  const std::shared_ptr<Device> device_;
  const DeviceMemory memory_;  // float[pairs]
};

}  // namespace

absl::StatusOr<std::unique_ptr<BackendScores>> MakeDeviceScores(std::shared_ptr<Device> device,
                                                                const ScoreShape& shape) {
  constexpr uint64_t kPairsMax = std::numeric_limits<int32_t>::max();
  if (shape.pairs() > kPairsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat(device->name(), ": scores of ", shape.pairs(), " pairs, at most ", kPairsMax));
  }
  KVTIER_RETURN_IF_ERROR(device->Enter());
  KVTIER_ASSIGN_OR_RETURN(DeviceMemory memory,
                          DeviceMemory::Allocate(device, shape.pairs() * sizeof(float)));
  return std::make_unique<DeviceScores>(std::move(device), shape, std::move(memory));
}

absl::StatusOr<const float*> ScoresOnDevice(const BackendScores& scores, const Device& device) {
  const auto* mine = dynamic_cast<const DeviceScores*>(&scores);
  if (mine == nullptr || &mine->device() != &device) {
    return absl::InvalidArgumentError(
        absl::StrCat(device.name(), ": ranking: scores of another backend"));
  }
  return mine->scores();
}

}  // namespace kvtier
