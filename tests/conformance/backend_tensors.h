// Inputs and outputs of the backend conformance tests: random numbers into tensors of any backend,
// and what comes out of them compared. Failures are those of the running test.
#ifndef KVTIER_TESTS_CONFORMANCE_BACKEND_TENSORS_H_
#define KVTIER_TESTS_CONFORMANCE_BACKEND_TENSORS_H_

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "compressor/backend.h"

namespace kvtier {

using Floats = std::vector<float>;

// In [-size, size).
Floats RandomFloats(std::mt19937_64& random, int64_t count, float size = 1);
// What a factor of a bf16 product becomes.
void RoundToBf16(Floats& values);

// The bytes of elements of `dtype`, rounded to nearest even.
std::string Encode(const Floats& values, DType dtype);
Tensor MakeTensor(Backend& backend, const Floats& values, DType dtype, int64_t rows, int64_t cols);
// As many bytes, for what no dtype describes; the last element may hold one more.
Tensor MakeBytes(Backend& backend, std::string bytes);
// Of the backend's activation dtype.
Tensor MakeActivations(Backend& backend, const Floats& values, int64_t rows, int64_t cols);
Floats Read(Backend& backend, const Tensor& tensor);

// |a - b| <= absolute + relative * |b|, NaN nowhere; a fatal failure otherwise.
void ExpectNear(const Floats& a, const Floats& b, double absolute, double relative);

// Keys and values of one layer on one backend.
struct Layer {
  Tensor keys;
  Tensor values;
  KvLayerView view;
};
Layer MakeLayer(Backend& backend, const Floats& keys, const Floats& values, DType dtype,
                int64_t heads, int64_t capacity, int64_t dim);

}  // namespace kvtier

#endif  // KVTIER_TESTS_CONFORMANCE_BACKEND_TENSORS_H_
