#include "compressor/backend.h"

#include <utility>

namespace kvtier {

Tensor::Tensor(void* data, DType dtype, int64_t rows, int64_t cols, Free free, void* context)
    : data_(data), dtype_(dtype), rows_(rows), cols_(cols), free_(free), context_(context) {}

Tensor::~Tensor() {
  if (free_ != nullptr) free_(data_, context_);
}

Tensor::Tensor(Tensor&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      dtype_(other.dtype_),
      rows_(std::exchange(other.rows_, 0)),
      cols_(std::exchange(other.cols_, 0)),
      free_(std::exchange(other.free_, nullptr)),
      context_(std::exchange(other.context_, nullptr)) {}

Tensor& Tensor::operator=(Tensor&& other) noexcept {
  if (this == &other) return *this;
  if (free_ != nullptr) free_(data_, context_);
  data_ = std::exchange(other.data_, nullptr);
  dtype_ = other.dtype_;
  rows_ = std::exchange(other.rows_, 0);
  cols_ = std::exchange(other.cols_, 0);
  free_ = std::exchange(other.free_, nullptr);
  context_ = std::exchange(other.context_, nullptr);
  return *this;
}

}  // namespace kvtier
