#include "store/band_fill.h"

#include <cstring>
#include <utility>

namespace kvtier {

LayerIndex BandFill::FirstLayer(const BandEntry& band) {
  uint32_t layer = 0;
  while (layer < band.layers.size() && band.layers[layer].encoded_bytes() == 0) ++layer;
  return LayerIndex(layer);
}

BandFill::BandFill(std::shared_ptr<BandMemory> memory) : memory_(std::move(memory)) {
  MutexLock lock(&mutex_);
  for (uint32_t layer = 0; layer < memory_->layer_count(); ++layer) {
    is_present_.push_back(memory_->Writable(LayerIndex(layer)).empty());
  }
  SkipPresent();
}

void BandFill::SkipPresent() {
  while (next_layer_ < is_present_.size() && is_present_[next_layer_]) ++next_layer_;
}

bool BandFill::Add(LayerIndex layer, ByteSpan segment) {
  std::shared_ptr<BandMemory> freed;  // After the lock.
  MutexLock lock(&mutex_);
  if (memory_ == nullptr || is_present_[layer.value()]) return false;
  if (layer.value() > next_layer_ + kLayersOutOfOrderMax) {
    freed = std::move(memory_);
    return false;
  }
  std::memcpy(memory_->Writable(layer).data(), segment.data(), segment.size());
  is_present_[layer.value()] = true;
  SkipPresent();
  return next_layer_ == is_present_.size();
}

std::shared_ptr<const BandMemory> BandFill::TakeWhole() {
  MutexLock lock(&mutex_);
  if (memory_ == nullptr || next_layer_ < is_present_.size()) return nullptr;
  memory_->Seal();
  return std::move(memory_);
}

void BandFill::Abandon() {
  std::shared_ptr<BandMemory> freed;  // After the lock.
  MutexLock lock(&mutex_);
  freed = std::move(memory_);
}

}  // namespace kvtier
