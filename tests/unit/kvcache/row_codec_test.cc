#include "kvcache/row_codec.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/half.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/half_rounding.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;

TEST(HalfRoundingTest, EveryHalfIsItsOwnNeighbourAndWhatLiesBetweenGoesTheRightWay) {
  for (uint32_t bits = 0; bits < 0x7C00; ++bits) {
    for (const uint32_t sign : {0u, 0x8000u}) {
      const float16 half = float16::FromBits(static_cast<uint16_t>(bits | sign));
      const double value = static_cast<float>(half);
      ASSERT_EQ(static_cast<float>(RoundUpToHalf(value)), value);
      ASSERT_EQ(static_cast<float>(RoundDownToHalf(value)), value);
      const double next = static_cast<float>(NextHalfUp(half));
      ASSERT_GT(next, value);
      for (const double between : {std::nextafter(value, next), std::nextafter(next, value)}) {
        if (std::isinf(between)) continue;
        ASSERT_EQ(static_cast<float>(RoundUpToHalf(between)), next) << value;
        ASSERT_EQ(static_cast<float>(RoundDownToHalf(between)), value) << value;
      }
    }
  }
  EXPECT_TRUE(std::isinf(static_cast<float>(RoundUpToHalf(65505))));
  EXPECT_EQ(static_cast<float>(RoundDownToHalf(-65505)), -kInfinity);
  EXPECT_EQ(RoundUpToHalf(1e-30).bits, 1u);
  EXPECT_EQ(RoundDownToHalf(1e-30).bits, 0u);
  EXPECT_EQ(RoundDownToHalf(-1e-30).bits, 0x8001u);
}

struct NamedRow {
  std::string name;
  std::vector<float> elements;
};

std::vector<NamedRow> AdversarialRows() {
  std::vector<NamedRow> rows;
  const auto add = [&](std::string name, size_t count, auto element) {
    NamedRow row{std::move(name), std::vector<float>(count)};
    for (size_t i = 0; i < count; ++i) row.elements[i] = static_cast<float>(element(i));
    rows.push_back(std::move(row));
  };
  for (const double constant :
       {0.0, -0.0, 1.0, -1.0, 1000.3, -65504.0, 65504.0, 1e-3, -1e-30, 3e-8, 6.2e-5, 1e-42, 0.1}) {
    add("constant " + std::to_string(constant), 128, [=](size_t) { return constant; });
  }
  for (const double size : {1.0, 65504.0, 30000.0, 1e-4, 1e-7, 1e-30, 1e-44}) {
    add("alternating " + std::to_string(size), 128,
        [=](size_t i) { return i % 2 == 0 ? size : -size; });
    add("one outlier " + std::to_string(size), 127, [=](size_t i) { return i == 77 ? size : 0.0; });
  }
  add("small range far from zero", 128, [](size_t i) { return 1000 + 1e-3 * double(i); });
  add("small range far below zero", 128, [](size_t i) { return -4097 - 1e-2 * double(i); });
  add("widest int4", 64,
      [](size_t i) { return i == 0 ? -65504.0 : 65504.0 * 14 * (double(i) / 64); });
  add("just above a half", 16, [](size_t i) { return 2048 + 1.0 / 512 * double(i % 2); });
  add("subnormal floats", 96, [](size_t i) { return 1e-45 * double(i); });
  add("subnormal halves", 96, [](size_t i) { return 5.9e-8 * double(i) - 2e-6; });
  add("one element", 1, [](size_t) { return -3.7; });
  add("odd", 7, [](size_t i) { return std::sin(double(i)); });
  std::mt19937_64 random(5);
  std::normal_distribution<double> normal;
  for (const double spread : {1e-6, 1e-3, 1.0, 100.0, 5000.0}) {
    for (const double offset : {0.0, 10.0, -3000.0}) {
      for (int repeat = 0; repeat < 20; ++repeat) {
        add("normal", 128, [&](size_t) { return offset + spread * normal(random); });
      }
    }
  }
  return rows;
}

class RowCodecTest : public ::testing::TestWithParam<CodecId> {
 protected:
  const RowCodec& codec() const { return *FindRowCodec(GetParam()); }

  struct Encoded {
    std::vector<std::byte> codes;
    std::vector<std::byte> scales;
  };
  absl::StatusOr<Encoded> Encode(const std::vector<float>& row) const {
    Encoded encoded;
    encoded.codes.resize(codec().code_bytes(static_cast<uint32_t>(row.size())));
    encoded.scales.resize(codec().scale_bytes());
    absl::Status status = codec().EncodeRow(row, encoded.codes.data(), encoded.scales.data());
    if (!status.ok()) return status;
    return encoded;
  }
  std::vector<float> Decode(const Encoded& encoded, size_t count) const {
    std::vector<float> row(count);
    codec().DecodeRow(encoded.codes.data(), encoded.scales.data(), row);
    return row;
  }
};

TEST_P(RowCodecTest, EveryElementOfEveryRowComesBackWithinTheBound) {
  for (const NamedRow& row : AdversarialRows()) {
    KVTIER_ASSERT_OK_AND_ASSIGN(const Encoded encoded, Encode(row.elements));
    KVTIER_EXPECT_OK(codec().CheckRow(encoded.codes.data(), encoded.scales.data(),
                                      static_cast<uint32_t>(row.elements.size())))
        << row.name;
    const std::vector<float> decoded = Decode(encoded, row.elements.size());
    const auto [low, high] = std::minmax_element(row.elements.begin(), row.elements.end());
    const double magnitude = std::max(std::abs(double{*low}), std::abs(double{*high}));
    const double scale =
        static_cast<float>(float16::FromBits(LoadLittleEndian<uint16_t>(encoded.scales.data())));
    const double stated = scale * (0.5 + std::ldexp(1.0, -16)) + magnitude * std::ldexp(1.0, -22);
    for (size_t i = 0; i < decoded.size(); ++i) {
      const double error = std::abs(double{decoded[i]} - row.elements[i]);
      ASSERT_LE(error, stated) << row.name << " element " << i << " of " << row.elements[i];
    }
    EXPECT_LE(stated, codec().ErrorBound(*low, *high)) << row.name;
  }
}

// The bound is of use only if it is about half a step of the row's range.
TEST_P(RowCodecTest, TheBoundIsHalfAStepOfTheRange) {
  const double step = GetParam() == CodecId::kInt8 ? 2.0 / 127 : 4.0 / 15;
  EXPECT_NEAR(codec().ErrorBound(-2, 2), step / 2, step / 400);
  EXPECT_GE(codec().ErrorBound(-2, 2), step / 2);
}

TEST_P(RowCodecTest, ConstantRowsThatAHalfHoldsComeBackExactlyInInt4) {
  for (const float constant :
       {0.0f, -0.0f, 1.0f, -0.375f, 65504.0f, -65504.0f, 0x1p-24f, 1023.5f}) {
    const std::vector<float> row(32, constant);
    KVTIER_ASSERT_OK_AND_ASSIGN(const Encoded encoded, Encode(row));
    if (GetParam() == CodecId::kInt8) {
      const double bound = codec().ErrorBound(constant, constant);
      EXPECT_NEAR(Decode(encoded, 32)[31], constant, bound);
    } else {
      EXPECT_EQ(Decode(encoded, 32), row);
    }
  }
}

TEST_P(RowCodecTest, WhatIsNotFiniteIsRefusedAndNamed) {
  for (const float bad : {kInfinity, -kInfinity, std::nanf("")}) {
    for (const size_t at : {0u, 5u, 31u}) {
      std::vector<float> row(32, 1.0f);
      row[at] = bad;
      EXPECT_THAT(Encode(row).status(),
                  StatusIs(kInvalid, HasSubstr("element " + std::to_string(at) + " is")));
    }
  }
}

TEST_P(RowCodecTest, RangesThatAScaleCannotHoldAreRefused) {
  if (GetParam() == CodecId::kInt8) {
    KVTIER_EXPECT_OK(Encode({65504.0f * 127, 1}).status());
    EXPECT_THAT(Encode({65520.0f * 127, 1}).status(), StatusIs(kInvalid, HasSubstr("int8 holds")));
    EXPECT_THAT(Encode({-3e38f, 1}).status(), StatusIs(kInvalid, HasSubstr("int8 holds")));
    return;
  }
  KVTIER_EXPECT_OK(Encode({-65504.0f, 65504.0f * 14}).status());
  for (const std::vector<float>& row : {std::vector<float>{-65505.0f, 1},
                                        {-3e38f, -3e38f},
                                        {-65504.0f, 65504.0f * 14.1f},
                                        {0, 3e38f}}) {
    EXPECT_THAT(Encode(row).status(), StatusIs(kInvalid, HasSubstr("int4 holds")));
  }
}

TEST_P(RowCodecTest, RowsAreReadInEveryDtypeAndTheBadOneIsNamed) {
  constexpr uint32_t kDim = 6;
  std::vector<float> elements;
  for (int i = 0; i < 18; ++i) elements.push_back(0.25f * static_cast<float>(i - 7));
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBf16}) {
    std::vector<std::byte> rows;
    ByteWriter writer(&rows);
    const auto write = [&](float x) {
      if (dtype == DType::kF32) writer.WriteF32(x);
      if (dtype == DType::kF16) writer.WriteU16(float16(x).bits);
      if (dtype == DType::kBf16) writer.WriteU16(bfloat16(x).bits);
    };
    for (const float x : elements) write(x);
    std::vector<std::byte> codes(3 * codec().code_bytes(kDim));
    std::vector<std::byte> scales(3 * codec().scale_bytes());
    KVTIER_ASSERT_OK(EncodeRows(codec(), dtype, rows.data(), 3, kDim, codes.data(), scales.data()));
    for (size_t row = 0; row < 3; ++row) {
      const std::vector<float> one(elements.begin() + 6 * row, elements.begin() + 6 * row + 6);
      KVTIER_ASSERT_OK_AND_ASSIGN(const Encoded encoded, Encode(one));
      EXPECT_TRUE(std::equal(encoded.codes.begin(), encoded.codes.end(),
                             codes.begin() + row * encoded.codes.size()));
      EXPECT_TRUE(std::equal(encoded.scales.begin(), encoded.scales.end(),
                             scales.begin() + row * encoded.scales.size()));
    }
    for (int i = 0; i < 6; ++i) write(i == 2 ? kInfinity : 0.0f);
    EXPECT_THAT(EncodeRows(codec(), dtype, rows.data() + 2 * kDim * DTypeBytes(dtype), 2, kDim,
                           codes.data(), scales.data()),
                StatusIs(kInvalid, HasSubstr("row 1: element 2 is inf")));
  }
}

TEST_P(RowCodecTest, BytesThatNoRowHasAreNoticed) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const Encoded good, Encode({1, 2, -3, 0.5f, 0.25f}));
  const auto check = [&](const Encoded& encoded) {
    return codec().CheckRow(encoded.codes.data(), encoded.scales.data(), 5);
  };
  KVTIER_EXPECT_OK(check(good));
  for (const uint16_t bits : {0x7C00, 0x7E00, 0xFC00, 0x8000, 0xBC00}) {
    Encoded bad = good;
    StoreLittleEndian(bits, bad.scales.data());
    EXPECT_THAT(check(bad), StatusIs(kInvalid, HasSubstr("scale is"))) << bits;
  }
  Encoded bad = good;
  if (GetParam() == CodecId::kInt8) {
    bad.codes[3] = std::byte{0x80};
    EXPECT_THAT(check(bad), StatusIs(kInvalid, HasSubstr("element 3 is -128")));
    return;
  }
  bad.codes[2] |= std::byte{1};
  EXPECT_THAT(check(bad), StatusIs(kInvalid, HasSubstr("behind the last element")));
  bad = good;
  StoreLittleEndian<uint16_t>(0x7C00, bad.scales.data() + 2);
  EXPECT_THAT(check(bad), StatusIs(kInvalid, HasSubstr("minimum is inf")));
}

INSTANTIATE_TEST_SUITE_P(Lossy, RowCodecTest, ::testing::Values(CodecId::kInt8, CodecId::kInt4),
                         [](const auto& test) { return std::string(CodecName(test.param)); });

TEST(RowCodecBytesTest, TheEvenElementSitsInTheHighHalf) {
  const float row[3] = {0, 15, 7};
  std::byte codes[2];
  std::byte scales[4];
  KVTIER_ASSERT_OK(FindRowCodec(CodecId::kInt4)->EncodeRow(row, codes, scales));
  EXPECT_EQ(std::to_integer<int>(codes[0]), 0x0F);
  EXPECT_EQ(std::to_integer<int>(codes[1]), 0x70);
  EXPECT_EQ(LoadLittleEndian<uint16_t>(scales), 0x3C00);  // 1
  EXPECT_EQ(LoadLittleEndian<uint16_t>(scales + 2), 0);
}

TEST(CodecIdTest, NamesGoBothWaysAndOthersAreRefused) {
  for (const CodecId codec : {CodecId::kRaw, CodecId::kInt8, CodecId::kInt4}) {
    EXPECT_TRUE(IsKnownCodec(codec));
    EXPECT_THAT(CodecFromName(CodecName(codec)), IsOkAndHolds(codec));
  }
  EXPECT_FALSE(IsKnownCodec(static_cast<CodecId>(0)));
  EXPECT_EQ(FindRowCodec(static_cast<CodecId>(0)), nullptr);
  EXPECT_EQ(FindRowCodec(CodecId::kRaw), nullptr);
  EXPECT_THAT(CodecFromName("fp8"), StatusIs(kInvalid, HasSubstr("raw, int8, int4")));
}

}  // namespace
}  // namespace kvtier
