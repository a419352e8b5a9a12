// Every set of CPU kernels decodes rows of the lossy codecs to the very bits of the readable codec.
#include <cstring>
#include <random>
#include <vector>

#include "base/status_matchers.h"
#include "compressor/cpu_kernels.h"
#include "gtest/gtest.h"
#include "kvcache/row_codec.h"

namespace kvtier {
namespace {

std::vector<float> Rows(int64_t count) {
  std::mt19937_64 random(9);
  std::normal_distribution<float> normal;
  std::vector<float> elements(static_cast<size_t>(count));
  for (size_t i = 0; i < elements.size(); ++i) {
    const float sizes[] = {1.0f, 1e-7f, 1000.0f, 0.0f};
    elements[i] = sizes[i / 64 % 4] * (normal(random) + 3);
  }
  return elements;
}

void ExpectSameBits(const CpuKernels& kernels, CodecId id, uint32_t rows, uint32_t dim) {
  const RowCodec& codec = *FindRowCodec(id);
  const std::vector<float> elements = Rows(int64_t{rows} * dim);
  std::vector<std::byte> codes(rows * codec.code_bytes(dim));
  std::vector<std::byte> scales(rows * codec.scale_bytes());
  KVTIER_ASSERT_OK(EncodeRows(codec, DType::kF32,
                              reinterpret_cast<const std::byte*>(elements.data()), rows, dim,
                              codes.data(), scales.data()));
  std::vector<float> decoded(elements.size());
  kernels.decode_rows(codes.data(), scales.data(),
                      id == CodecId::kInt8 ? KvCode::kInt8 : KvCode::kInt4, rows, dim,
                      decoded.data());
  std::vector<float> expected(dim);
  for (uint32_t row = 0; row < rows; ++row) {
    codec.DecodeRow(codes.data() + row * codec.code_bytes(dim),
                    scales.data() + row * codec.scale_bytes(), expected);
    ASSERT_EQ(std::memcmp(expected.data(), decoded.data() + uint64_t{row} * dim, dim * 4), 0)
        << kernels.name << " " << CodecName(id) << " row " << row << " of [" << rows << ", " << dim
        << "]";
  }
}

TEST(CodedRowsTest, EveryKernelSetDecodesTheBitsOfTheCodec) {
  for (const CpuKernels* kernels :
       {Avx512Bf16Kernels(), Avx512Kernels(), Avx2Kernels(), BaselineKernels()}) {
    if (kernels == nullptr) continue;
    for (const CodecId id : {CodecId::kInt8, CodecId::kInt4}) {
      for (const uint32_t dim : {1u, 7u, 31u, 48u, 64u, 128u, 250u, 512u}) {
        for (const uint32_t rows : {1u, 5u, 128u, 131u}) ExpectSameBits(*kernels, id, rows, dim);
      }
    }
  }
}

}  // namespace
}  // namespace kvtier
