#include "tests/conformance/backend_tensors.h"

#include <cmath>
#include <utility>

#include "base/bytes.h"
#include "base/half.h"
#include "base/status_matchers.h"
#include "gtest/gtest.h"

namespace kvtier {

Floats RandomFloats(std::mt19937_64& random, int64_t count, float size) {
  std::uniform_real_distribution<float> uniform(-size, size);
  Floats values(static_cast<size_t>(count));
  for (float& value : values) value = uniform(random);
  return values;
}

std::string Encode(const Floats& values, DType dtype) {
  std::string bytes;
  ByteWriter writer(&bytes);
  for (float value : values) {
    if (dtype == DType::kF32) writer.WriteF32(value);
    if (dtype == DType::kF16) writer.WriteU16(float16(value).bits);
    if (dtype == DType::kBf16) writer.WriteU16(bfloat16(value).bits);
  }
  return bytes;
}

Tensor MakeTensor(Backend& backend, const Floats& values, DType dtype, int64_t rows, int64_t cols) {
  auto tensor = backend.Allocate(dtype, rows, cols);
  KVTIER_EXPECT_OK(tensor);
  KVTIER_EXPECT_OK(backend.Upload(AsBytes(Encode(values, dtype)), *tensor));
  return *std::move(tensor);
}

Tensor MakeBytes(Backend& backend, std::string bytes) {
  bytes.resize((bytes.size() + 1) / 2 * 2);
  auto tensor = backend.Allocate(DType::kBf16, 1, static_cast<int64_t>(bytes.size() / 2));
  KVTIER_EXPECT_OK(tensor);
  KVTIER_EXPECT_OK(backend.Upload(AsBytes(bytes), *tensor));
  return *std::move(tensor);
}

void RoundToBf16(Floats& values) {
  for (float& value : values) value = static_cast<float>(bfloat16(value));
}

Tensor MakeActivations(Backend& backend, const Floats& values, int64_t rows, int64_t cols) {
  return MakeTensor(backend, values, backend.activation_dtype(), rows, cols);
}

Floats Read(Backend& backend, const Tensor& tensor) {
  std::string bytes(tensor.bytes(), '\0');
  KVTIER_EXPECT_OK(backend.Download(tensor, AsMutableBytes(bytes)));
  ByteReader reader(AsBytes(bytes));
  Floats values;
  for (int64_t i = 0; i < tensor.rows() * tensor.cols(); ++i) {
    if (tensor.dtype() == DType::kF32) values.push_back(*reader.ReadF32());
    if (tensor.dtype() == DType::kF16) {
      values.push_back(static_cast<float>(float16::FromBits(*reader.ReadU16())));
    }
    if (tensor.dtype() == DType::kBf16) {
      values.push_back(static_cast<float>(bfloat16::FromBits(*reader.ReadU16())));
    }
  }
  return values;
}

void ExpectNear(const Floats& a, const Floats& b, double absolute, double relative) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_LE(std::abs(double{a[i]} - b[i]), absolute + relative * std::abs(b[i]))
        << "at " << i << ": " << a[i] << ", reference " << b[i];
  }
}

Layer MakeLayer(Backend& backend, const Floats& keys, const Floats& values, DType dtype,
                int64_t heads, int64_t capacity, int64_t dim) {
  Layer layer{.keys = MakeTensor(backend, keys, dtype, heads * capacity, dim),
              .values = MakeTensor(backend, values, dtype, heads * capacity, dim),
              .view = {}};
  layer.view = {.keys = layer.keys.data(),
                .values = layer.values.data(),
                .dtype = dtype,
                .kv_heads = heads,
                .capacity = capacity,
                .head_dim = dim};
  return layer;
}

}  // namespace kvtier
