#include "compressor/safetensors.h"

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/limits.h"
#include "base/status_matchers.h"
#include "compressor/safetensors_writer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/files.h"
#include "tests/testing/temp_dir.h"

namespace kvtier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Image(const std::string& header, size_t data_bytes) {
  std::string file;
  ByteWriter writer(&file);
  writer.WriteU64(header.size());
  writer.WriteBytes(header);
  writer.WriteZeros(data_bytes);
  return file;
}

std::string Tensor(const std::string& name, const std::string& dtype, const std::string& shape,
                   const std::string& offsets) {
  return absl::StrCat("\"", name, "\":{\"dtype\":\"", dtype, "\",\"shape\":", shape,
                      ",\"data_offsets\":", offsets, "}");
}

TEST(SafetensorsTest, ReadsWhatItWrote) {
  TempDir dir;
  const std::string a(12, 'a');
  const std::string b(6, 'b');
  KVTIER_ASSERT_OK(
      WriteSafetensors(dir.File("x.safetensors"),
                       {{"weight", {.dtype = "F32", .shape = {3, 1}, .bytes = AsBytes(a)}},
                        {"bias", {.dtype = "BF16", .shape = {3}, .bytes = AsBytes(b)}},
                        {"nothing", {.dtype = "I64", .shape = {0, 7}, .bytes = {}}},
                        {"scalar", {.dtype = "U8", .shape = {}, .bytes = AsBytes("s")}}}));
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto file, SafetensorsFile::Open(dir.File("x.safetensors")));
  ASSERT_EQ(file->entries().size(), 4u);
  const SafetensorsEntry& weight = file->entries().at("weight");
  EXPECT_EQ(weight.dtype, "F32");
  EXPECT_THAT(weight.shape, ElementsAre(3, 1));
  EXPECT_EQ(ToString(weight.bytes), a);
  EXPECT_EQ(ToString(file->entries().at("bias").bytes), b);
  EXPECT_EQ(ToString(file->entries().at("scalar").bytes), "s");
  EXPECT_EQ(ToString(file->bytes()), ReadFile(dir.File("x.safetensors")));
}

TEST(SafetensorsTest, MetadataIsTextByName) {
  TempDir dir;
  const std::map<std::string, std::string> metadata = {{"recipe", "kvzip+/1"}, {"quote", "\"\n\\"}};
  KVTIER_ASSERT_OK(WriteSafetensors(dir.File("x"), {}, metadata));
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto file, SafetensorsFile::Open(dir.File("x")));
  EXPECT_EQ(file->metadata(), metadata);
  KVTIER_ASSERT_OK(WriteSafetensors(dir.File("x"), {}));  // Replaces the file.
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto without, SafetensorsFile::Open(dir.File("x")));
  EXPECT_TRUE(without->metadata().empty());
  const std::string number = Image("{\"__metadata__\":{\"n\":1}}", 0);
  EXPECT_THAT(ParseSafetensors(AsBytes(number), "x"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("n is no string")));
}

TEST(SafetensorsTest, AWriteThatFailsLeavesNothing) {
  TempDir dir;
  ASSERT_TRUE(std::filesystem::create_directory(dir.File("taken")));
  EXPECT_THAT(WriteSafetensors(dir.File("taken"), {}),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("taken")));
  std::vector<std::string> left;
  for (const auto& entry : std::filesystem::directory_iterator(dir.path())) {
    left.push_back(entry.path().filename().string());
  }
  EXPECT_THAT(left, ElementsAre("taken"));
}

TEST(SafetensorsTest, RefusesToWriteBytesThatDoNotFit) {
  TempDir dir;
  EXPECT_THAT(WriteSafetensors(dir.File("x"),
                               {{"t", {.dtype = "F32", .shape = {2}, .bytes = AsBytes("1234")}}}),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(WriteSafetensors(dir.File("no/such/folder"), {}),
              StatusIs(absl::StatusCode::kUnavailable));
}

TEST(SafetensorsTest, NamesTheFileThatIsNotThere) {
  TempDir dir;
  EXPECT_THAT(SafetensorsFile::Open(dir.File("none")),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("none")));
  EXPECT_THAT(SafetensorsFile::Open(dir.path()), StatusIs(absl::StatusCode::kInvalidArgument));
  WriteFile(dir.File("empty"), "");
  EXPECT_THAT(SafetensorsFile::Open(dir.File("empty")),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("truncated")));
}

TEST(SafetensorsTest, AcceptsMetadataPaddingAndAnyOrder) {
  const std::string header =
      absl::StrCat("{\"__metadata__\":{\"format\":\"pt\"},", Tensor("b", "U8", "[3]", "[2,5]"), ",",
                   Tensor("a", "F16", "[1]", "[0,2]"), "}   ");
  const std::string file = Image(header, 5);
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto entries, ParseSafetensors(AsBytes(file), "f"));
  EXPECT_EQ(entries.size(), 2u);
  EXPECT_EQ(entries.at("a").bytes.size(), 2u);
}

// Files that attack a reader, by name, with what it must say.
TEST(SafetensorsTest, RefusesHostileFiles) {
  const std::string deep(limits::kJsonDepthMax + 1, '[');
  std::string huge_header;
  ByteWriter(&huge_header).WriteU64(limits::kSafetensorsHeaderBytesMax + 1);
  std::string truncated_header;
  ByteWriter(&truncated_header).WriteU64(1000);
  truncated_header += "{\"a\":";
  std::string wrapping_header;
  ByteWriter(&wrapping_header).WriteU64(~uint64_t{0});
  wrapping_header += "{}";
  const auto one = [](const std::string& tensor, size_t data) {
    return Image("{" + tensor + "}", data);
  };
  const struct {
    const char* name;
    std::string file;
    const char* message;
  } attacks[] = {
      {"truncated_length", std::string(7, '\0'), "truncated"},
      {"truncated_header", truncated_header, "truncated"},
      {"huge_header", huge_header, "at most"},
      {"wrapping_header", wrapping_header, "at most"},
      {"not_json", Image("hello", 0), "not JSON"},
      {"empty_header", Image("", 0), "not JSON"},
      {"not_an_object", Image("[]", 0), "not a JSON object"},
      {"half_an_object", Image("{\"a\":", 0), "not JSON"},
      {"two_objects", Image("{}{}", 0), "not JSON"},
      {"bad_utf8", Image("{\"\xff\xfe\":1}", 0), "not JSON"},
      {"nested_deep", Image("{\"a\":" + deep, 0), "deeper"},
      {"duplicate_name",
       Image(
           "{" + Tensor("a", "U8", "[1]", "[0,1]") + "," + Tensor("a", "U8", "[1]", "[1,2]") + "}",
           2),
       "twice"},
      {"duplicate_field",
       Image("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,1]}}",
             1),
       "twice"},
      {"missing_field", Image("{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1), "exactly the fields"},
      {"extra_field",
       Image("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":1}}", 1),
       "exactly the fields"},
      {"tensor_no_object", Image("{\"a\":7}", 0), "exactly the fields"},
      {"unknown_dtype", one(Tensor("a", "F7", "[1]", "[0,1]"), 1), "unknown dtype"},
      {"dtype_number", Image("{\"a\":{\"dtype\":1,\"shape\":[1],\"data_offsets\":[0,1]}}", 1),
       "dtype"},
      {"negative_shape", one(Tensor("a", "U8", "[-1]", "[0,1]"), 1), "no size"},
      {"fractional_shape", one(Tensor("a", "U8", "[1.5]", "[0,1]"), 1), "no size"},
      {"shape_overflow", one(Tensor("a", "F32", "[4294967296,4294967296]", "[0,0]"), 0),
       "overflows"},
      {"shape_wraps_to_fit", one(Tensor("a", "U8", "[9223372036854775807,2,3]", "[0,1]"), 1),
       "overflows"},
      {"shape_extent_huge", one(Tensor("a", "U8", "[18446744073709551615]", "[0,1]"), 1),
       "no size"},
      {"shape_rank", one(Tensor("a", "U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]"), 1), "at most 8"},
      {"shape_no_list", one(Tensor("a", "U8", "3", "[0,1]"), 1), "shape"},
      {"offset_out_of_range", one(Tensor("a", "U8", "[9]", "[0,9]"), 8), "out of range"},
      {"offset_huge",
       one(Tensor("a", "U8", "[1]", "[18446744073709551614,18446744073709551615]"), 8),
       "out of range"},
      {"offset_negative", one(Tensor("a", "U8", "[1]", "[-1,0]"), 8), "out of range"},
      {"offset_reversed", one(Tensor("a", "U8", "[1]", "[1,0]"), 8), "out of range"},
      {"offset_three", one(Tensor("a", "U8", "[1]", "[0,1,2]"), 8), "pair"},
      {"wrong_size", one(Tensor("a", "F32", "[2]", "[0,4]"), 4), "take 8"},
      {"overlap",
       Image(
           "{" + Tensor("a", "U8", "[2]", "[0,2]") + "," + Tensor("b", "U8", "[2]", "[1,3]") + "}",
           3),
       "overlaps"},
      {"same_bytes_twice",
       Image(
           "{" + Tensor("a", "U8", "[2]", "[0,2]") + "," + Tensor("b", "U8", "[2]", "[0,2]") + "}",
           2),
       "overlaps"},
      {"gap",
       Image(
           "{" + Tensor("a", "U8", "[1]", "[0,1]") + "," + Tensor("b", "U8", "[1]", "[2,3]") + "}",
           3),
       "gap"},
      {"gap_at_start", one(Tensor("a", "U8", "[1]", "[1,2]"), 2), "gap"},
      {"bytes_behind", one(Tensor("a", "U8", "[1]", "[0,1]"), 2), "behind"},
      {"metadata_no_object", Image("{\"__metadata__\":3}", 0), "__metadata__"},
  };
  for (const auto& attack : attacks) {
    EXPECT_THAT(ParseSafetensors(AsBytes(attack.file), "file.safetensors"),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         AllOf(HasSubstr("file.safetensors"), HasSubstr(attack.message))))
        << attack.name;
  }
}

// A valid file, cut at every length: never accepted, never a read past the end (under ASan).
TEST(SafetensorsTest, RefusesEveryTruncation) {
  const std::string file = Image("{" + Tensor("a", "F32", "[2]", "[0,8]") + "}", 8);
  KVTIER_ASSERT_OK(ParseSafetensors(AsBytes(file), "f"));
  for (size_t size = 0; size < file.size(); ++size) {
    const std::string cut = file.substr(0, size);
    EXPECT_THAT(ParseSafetensors(AsBytes(cut), "f"), StatusIs(absl::StatusCode::kInvalidArgument))
        << size;
  }
}

}  // namespace
}  // namespace kvtier
