#include "compressor/checkpoint.h"

#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/half.h"
#include "base/limits.h"
#include "base/status_matchers.h"
#include "compressor/safetensors_writer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/files.h"
#include "tests/testing/temp_dir.h"

namespace kvtier {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;

// Bit patterns of one dtype: what must be found, and what must not.
struct Patterns {
  DType dtype;
  uint32_t bytes;
  std::vector<uint32_t> not_finite;  // +inf, -inf, smallest and quiet NaN, NaN with every bit
  std::vector<uint32_t> finite;      // 1, -0, smallest denormal, largest, most negative
};
const Patterns kPatterns[] = {
    {DType::kF32,
     4,
     {0x7f800000, 0xff800000, 0x7f800001, 0x7fc00000, 0xffffffff},
     {0x3f800000, 0x80000000, 0x00000001, 0x7f7fffff, 0xff7fffff}},
    {DType::kBf16,
     2,
     {0x7f80, 0xff80, 0x7f81, 0x7fc0, 0xffff},
     {0x3f80, 0x8000, 0x0001, 0x7f7f, 0xff7f}},
    {DType::kF16,
     2,
     {0x7c00, 0xfc00, 0x7c01, 0x7e00, 0xffff},
     {0x3c00, 0x8000, 0x0001, 0x7bff, 0xfbff}},
};

TEST(FindNotFiniteTest, FindsTheFirstOfAnySizeAtAnyPlaceAndAlignment) {
  for (const Patterns& p : kPatterns) {
    for (size_t size : {1, 2, 63, 1023, 1024, 1025, 2048, 2500}) {
      for (size_t shift : {0, 1}) {  // The data of a file may start anywhere.
        std::vector<std::byte> memory(shift + size * p.bytes);
        const auto put = [&](size_t index, uint32_t bits) {
          std::memcpy(memory.data() + shift + index * p.bytes, &bits, p.bytes);
        };
        const auto find = [&] { return FindNotFinite(std::span(memory).subspan(shift), p.dtype); };
        for (size_t i = 0; i < size; ++i) put(i, p.finite[i % p.finite.size()]);
        EXPECT_EQ(find(), -1) << DTypeName(p.dtype) << " of " << size;
        for (size_t at : {size - 1, size / 2, size_t{0}}) {  // Later ones stay and are not first.
          for (uint32_t bits : p.not_finite) {
            put(at, bits);
            EXPECT_EQ(find(), static_cast<int64_t>(at)) << DTypeName(p.dtype) << " of " << size;
          }
        }
      }
    }
    EXPECT_EQ(FindNotFinite({}, p.dtype), -1);
  }
}

TEST(CheckpointIndexTest, ReadsTheMap) {
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const CheckpointIndex index,
      CheckpointIndex::Parse(R"({"metadata": {"total_size": 12}, "weight_map":
          {"b": "model-00002-of-00002.safetensors", "a": "model-00001-of-00002.safetensors"}})"));
  EXPECT_THAT(index.files, ElementsAre(Pair("a", "model-00001-of-00002.safetensors"),
                                       Pair("b", "model-00002-of-00002.safetensors")));
}

TEST(CheckpointIndexTest, RefusesWhatIsNoMapOfFilesBesideIt) {
  const struct {
    std::string text;
    const char* says;
  } cases[] = {
      {"", "model.safetensors.index.json"},
      {"[]", "model.safetensors.index.json"},
      {R"({"weight_map")", "model.safetensors.index.json"},
      {"{}", "weight_map is missing"},
      {R"({"weight_map": []})", "weight_map is missing or no object"},
      {R"({"weight_map": {}})", "weight_map is empty"},
      {R"({"weight_map": {"a": 1}})", R"(weight_map["a"] is no string)"},
      {R"({"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}})", "twice"},
      {R"({"weight_map": {"a": ""}})", R"(weight_map["a"] is "")"},
      {R"({"weight_map": {"a": "../x.safetensors"}})", R"(is "../x.safetensors")"},
      {R"({"weight_map": {"a": "/etc/x.safetensors"}})", R"(is "/etc/x.safetensors")"},
      {R"({"weight_map": {"a": "sub/x.safetensors"}})", R"(is "sub/x.safetensors")"},
      {R"({"weight_map": {"a": "..\\x.safetensors"}})", "same folder"},
      {R"({"weight_map": {"a": "x\u0000.safetensors"}})", "same folder"},
      {R"({"weight_map": {"a": "x.bin"}})", R"(is "x.bin")"},
      {absl::StrCat(R"({"weight_map": {"a": ")", std::string(300, 'x'), R"(.safetensors"}})"),
       "same folder"},
  };
  for (const auto& c : cases) {
    EXPECT_THAT(
        CheckpointIndex::Parse(c.text),
        StatusIs(kInvalid, AllOf(HasSubstr("model.safetensors.index.json"), HasSubstr(c.says))))
        << c.text;
  }
}

TEST(CheckpointIndexTest, BoundsFilesAndMessages) {
  std::string text = R"({"weight_map": {)";
  for (uint32_t i = 0; i <= limits::kCheckpointShardsMax; ++i) {
    absl::StrAppend(&text, i > 0 ? "," : "", "\"t", i, "\": \"", i, ".safetensors\"");
  }
  EXPECT_THAT(CheckpointIndex::Parse(text + "}}"),
              StatusIs(kInvalid, HasSubstr("4097 weight files, at most 4096")));
  const auto long_name = CheckpointIndex::Parse(
      absl::StrCat(R"({"weight_map": {")", std::string(100'000, 'n'), R"(": 1}})"));
  EXPECT_THAT(long_name, StatusIs(kInvalid, HasSubstr("is no string")));
  EXPECT_LT(long_name.status().message().size(), 1000u);
}

class CheckpointTest : public ::testing::Test {
 protected:
  // A file with one tensor of zeros for each name and shape.
  void Write(const std::string& file, const std::map<std::string, std::vector<int64_t>>& tensors,
             const std::string& dtype = "F32") {
    static const std::vector<std::byte> zeros(4096);
    std::map<std::string, SafetensorsEntry> entries;
    for (const auto& [name, shape] : tensors) {
      entries[name] = {.dtype = dtype,
                       .shape = shape,
                       .bytes = std::span(zeros).first(*SafetensorsBytes(dtype, shape))};
    }
    KVTIER_ASSERT_OK(WriteSafetensors(dir_.File(file), entries));
  }
  absl::StatusOr<Checkpoint> Open() { return Checkpoint::Open(dir_.path().string()); }

  TempDir dir_;
};

TEST_F(CheckpointTest, TakesWhatHasTheShapeAndKnowsWhatIsLeft) {
  Write("model.safetensors", {{"a", {2, 3}}, {"b", {4}}, {"vision.c", {1}}});
  KVTIER_ASSERT_OK_AND_ASSIGN(Checkpoint checkpoint, Open());
  EXPECT_TRUE(checkpoint.Has("a"));
  EXPECT_FALSE(checkpoint.Has("c"));
  KVTIER_ASSERT_OK_AND_ASSIGN(const Checkpoint::Taken a, checkpoint.Take("a", {2, 3}));
  EXPECT_EQ(a.bytes.size(), 24u);
  EXPECT_EQ(a.dtype, DType::kF32);
  const absl::string_view ignored[] = {"vision."};
  EXPECT_THAT(checkpoint.ExpectNoneLeft(ignored),
              StatusIs(kInvalid, HasSubstr("tensor \"b\", shape [4], is unexpected")));
  EXPECT_THAT(checkpoint.Take("b", {2, 2}),
              StatusIs(kInvalid, HasSubstr("tensor \"b\" has shape [4], not [2, 2]")));
  EXPECT_THAT(checkpoint.ExpectNoneLeft(ignored), StatusIs(kInvalid)) << "refused is not taken";
  KVTIER_EXPECT_OK(checkpoint.Take("b", {4}));
  KVTIER_EXPECT_OK(checkpoint.ExpectNoneLeft(ignored));
  EXPECT_THAT(checkpoint.ExpectNoneLeft({}), StatusIs(kInvalid, HasSubstr("vision.c")));
  EXPECT_THAT(checkpoint.Take("d", {7, 8}),
              StatusIs(kInvalid, HasSubstr("\"d\" is missing, its shape would be [7, 8]")));
}

TEST_F(CheckpointTest, RefusesDtypesThatAreNotBuilt) {
  for (const char* dtype : {"I8", "U8", "F8_E4M3", "F64", "I32", "BOOL"}) {
    Write("model.safetensors", {{"a", {8}}}, dtype);
    KVTIER_ASSERT_OK_AND_ASSIGN(Checkpoint checkpoint, Open());
    EXPECT_THAT(checkpoint.Take("a", {8}),
                StatusIs(absl::StatusCode::kUnimplemented,
                         HasSubstr(absl::StrCat("tensor \"a\" has dtype ", dtype))));
  }
}

TEST_F(CheckpointTest, OneFileGoesBeforeTheIndexAndTheIndexBeforeTheFolder) {
  Write("other.safetensors", {{"other", {1}}});
  KVTIER_ASSERT_OK_AND_ASSIGN(const Checkpoint all, Open());
  EXPECT_TRUE(all.Has("other"));
  Write("part.safetensors", {{"part", {1}}});
  WriteFile(dir_.File("model.safetensors.index.json"),
            R"({"weight_map": {"part": "part.safetensors"}})");
  KVTIER_ASSERT_OK_AND_ASSIGN(const Checkpoint indexed, Open());
  EXPECT_TRUE(indexed.Has("part"));
  EXPECT_FALSE(indexed.Has("other"));
  Write("model.safetensors", {{"one", {1}}});
  KVTIER_ASSERT_OK_AND_ASSIGN(const Checkpoint one, Open());
  EXPECT_TRUE(one.Has("one"));
  EXPECT_FALSE(one.Has("part"));
}

TEST_F(CheckpointTest, NamesWhatIsNotThere) {
  EXPECT_THAT(Open(), StatusIs(absl::StatusCode::kNotFound, HasSubstr("no *.safetensors file")));
  EXPECT_THAT(Checkpoint::Open(dir_.File("nowhere")),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("nowhere")));
  Write("x.safetensors", {{"a", {1}}});
  Write("y.safetensors", {{"a", {1}}});
  EXPECT_THAT(Open(), StatusIs(kInvalid, AllOf(HasSubstr("y.safetensors"), HasSubstr("\"a\""),
                                               HasSubstr("another file"))));
  std::filesystem::create_directory(dir_.File("model.safetensors"));
  EXPECT_THAT(Open(), StatusIs(kInvalid, HasSubstr("not a file with content")));
}

}  // namespace
}  // namespace kvtier
