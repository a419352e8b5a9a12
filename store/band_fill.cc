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
  SkipEmpty();
}

void BandFill::SkipEmpty() {
  while (next_layer_ < memory_->layer_count() &&
         memory_->Writable(LayerIndex(next_layer_)).empty()) {
    ++next_layer_;
  }
}

std::shared_ptr<const BandMemory> BandFill::Add(LayerIndex layer, ByteSpan segment) {
  std::shared_ptr<BandMemory> freed;  // After the lock.
  MutexLock lock(&mutex_);
  if (memory_ == nullptr || layer.value() < next_layer_) return nullptr;
  if (layer.value() > next_layer_) {
    freed = std::move(memory_);
    return nullptr;
  }
  std::memcpy(memory_->Writable(layer).data(), segment.data(), segment.size());
  ++next_layer_;
  SkipEmpty();
  if (next_layer_ < memory_->layer_count()) return nullptr;
  memory_->Seal();
  return std::move(memory_);
}

void BandFill::Abandon() {
  std::shared_ptr<BandMemory> freed;  // After the lock.
  MutexLock lock(&mutex_);
  freed = std::move(memory_);
}

}  // namespace kvtier
