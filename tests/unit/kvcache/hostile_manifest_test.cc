// Manifests with a right checksum and a wrong content: each has a name, the code it must give and
// what the message must say.
#include <cmath>
#include <functional>
#include <limits>
#include <ostream>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/limits.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/manifest.h"
#include "kvcache/segment.h"
#include "tests/unit/kvcache/random_object.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Offsets in the encoding of a manifest with an empty model name and an empty recipe.
constexpr size_t kVersionAt = 8;
constexpr size_t kLengthAt = 12;
constexpr size_t kSystemTokensAt = 20 + 32 + 16 + 32 + 32 + 32;
constexpr size_t kContextTokensAt = kSystemTokensAt + 8;
constexpr size_t kModelNameAt = kContextTokensAt + 8;
constexpr size_t kRecipeAt = kModelNameAt + 4;
constexpr size_t kKvHeadsAt = kRecipeAt + 4;
constexpr size_t kHeadDimAt = kKvHeadsAt + 4;
constexpr size_t kDTypeAt = kHeadDimAt + 4;
constexpr size_t kLayersAt = kDTypeAt + 1;
constexpr size_t kKindsAt = kLayersAt + 4;
constexpr size_t kBandsAt = kKindsAt + 2;
constexpr size_t kEdgeAt = kBandsAt + 4;
constexpr size_t kCodecAt = kEdgeAt + 4 + 4 + 8;

std::string Good() {
  Manifest m = *MakeRandomObject(TinyShape()).manifest;
  m.model_name.clear();
  m.recipe.clear();
  return EncodeManifest(m);
}

template <typename T>
void Put(std::string& bytes, size_t at, T value) {
  StoreLittleEndian(value, AsMutableBytes(bytes).subspan(at, sizeof(T)).data());
}

// Makes length and checksum right again.
void Reseal(std::string& bytes) {
  Put<uint64_t>(bytes, kLengthAt, bytes.size());
  Put<uint32_t>(bytes, bytes.size() - 4,
                ComputeCrc32c(AsBytes(bytes).first(bytes.size() - 4)).value());
}

struct HostileBytes {
  const char* name;
  absl::StatusCode code;
  const char* message;
  std::function<void(std::string&)> apply;  // Before resealing.
};
void PrintTo(const HostileBytes& c, std::ostream* os) { *os << c.name; }

class HostileBytesTest : public ::testing::TestWithParam<HostileBytes> {};

TEST_P(HostileBytesTest, IsRefused) {
  std::string bytes = Good();
  GetParam().apply(bytes);
  Reseal(bytes);
  EXPECT_THAT(DecodeManifest(AsBytes(bytes)),
              StatusIs(GetParam().code, HasSubstr(GetParam().message)));
}

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

INSTANTIATE_TEST_SUITE_P(
    Manifest, HostileBytesTest,
    ::testing::ValuesIn(std::vector<HostileBytes>{
        {"manifest_version_newer", absl::StatusCode::kFailedPrecondition, "format version 3",
         [](std::string& b) { Put<uint32_t>(b, kVersionAt, 3); }},
        {"manifest_version_2_of_nothing_new", kInvalid, "are left",
         [](std::string& b) { Put<uint32_t>(b, kVersionAt, 2); }},
        {"manifest_version_2_that_says_version_1", kInvalid, "what it says is version 1",
         [](std::string& b) {
           Put<uint32_t>(b, kVersionAt, 2);
           b.insert(b.size() - 4, 1, '\0');
         }},
        {"manifest_version_1_with_version_2_bytes", kInvalid, "are left",
         [](std::string& b) { b.insert(b.size() - 4, 1, '\0'); }},
        {"manifest_fidelity_without_numbers", kInvalid, "",
         [](std::string& b) {
           Put<uint32_t>(b, kVersionAt, 2);
           b.insert(b.size() - 4, 1, '\1');
         }},
        {"manifest_fidelity_presence_unknown", kInvalid, "presence is 2",
         [](std::string& b) {
           Put<uint32_t>(b, kVersionAt, 2);
           b.insert(b.size() - 4, 1 + 4 + 8 + 2 * 8, '\2');
         }},
        {"manifest_fidelity_behind_absence", kInvalid, "are left at the end",
         [](std::string& b) {
           Put<uint32_t>(b, kVersionAt, 2);
           b.insert(b.size() - 4, 1 + 4 + 8 + 2 * 8, '\0');
         }},
        {"manifest_version_zero", absl::StatusCode::kFailedPrecondition, "format version 0",
         [](std::string& b) { Put<uint32_t>(b, kVersionAt, 0); }},
        {"manifest_magic_of_another_format", absl::StatusCode::kDataLoss, "magic",
         [](std::string& b) { b.replace(0, 8, "KVTKEYDS"); }},
        {"manifest_truncated_in_bands", kInvalid, "are left",
         [](std::string& b) { b.resize(b.size() - 16); }},
        {"manifest_truncated_in_key", kInvalid, "", [](std::string& b) { b.resize(40); }},
        {"manifest_trailing_bytes", kInvalid, "are left",
         [](std::string& b) { b.append(16, '\0'); }},
        {"manifest_name_overflow", kInvalid, "",
         [](std::string& b) { Put<uint32_t>(b, kModelNameAt, 0xFFFFFFFF); }},
        {"manifest_recipe_beyond_end", kInvalid, "",
         [](std::string& b) { Put<uint32_t>(b, kRecipeAt, static_cast<uint32_t>(b.size())); }},
        {"manifest_count_overflow_layers", kInvalid, "",
         [](std::string& b) { Put<uint32_t>(b, kLayersAt, 0xFFFFFFFF); }},
        {"manifest_layers_above_limit", kInvalid, "",
         [](std::string& b) { Put<uint32_t>(b, kLayersAt, limits::kLayersMax + 1); }},
        {"manifest_count_overflow_heads", kInvalid, "kKvHeadsMax",
         [](std::string& b) { Put<uint32_t>(b, kKvHeadsAt, 0xFFFFFFFF); }},
        {"manifest_heads_without_entries", kInvalid, "are left",
         [](std::string& b) { Put<uint32_t>(b, kKvHeadsAt, limits::kKvHeadsMax); }},
        {"manifest_no_heads", kInvalid, "kv_heads is 0",
         [](std::string& b) { Put<uint32_t>(b, kKvHeadsAt, 0); }},
        {"manifest_head_dim_overflow", kInvalid, "kHeadDimMax",
         [](std::string& b) { Put<uint32_t>(b, kHeadDimAt, 0x80000001); }},
        {"manifest_dtype_unknown", kInvalid, "dtype",
         [](std::string& b) { Put<uint8_t>(b, kDTypeAt, 7); }},
        {"manifest_layer_kind_unknown", kInvalid, "kind 3",
         [](std::string& b) { Put<uint8_t>(b, kKindsAt, 3); }},
        {"manifest_count_overflow", kInvalid, "kBandsMax",
         [](std::string& b) { Put<uint32_t>(b, kBandsAt, 0xFFFFFFFF); }},
        {"manifest_bands_without_entries", kInvalid, "are left",
         [](std::string& b) { Put<uint32_t>(b, kBandsAt, limits::kBandsMax); }},
        {"manifest_no_bands", kInvalid, "are left",
         [](std::string& b) { Put<uint32_t>(b, kBandsAt, 0); }},
        {"manifest_edge_zero", kInvalid, "ratio",
         [](std::string& b) { Put<uint32_t>(b, kEdgeAt, 0); }},
        {"manifest_edge_above_one", kInvalid, "ratio",
         [](std::string& b) { Put<uint32_t>(b, kEdgeAt, 1'000'001); }},
        {"manifest_codec_unknown", kInvalid, "unknown codec 9",
         [](std::string& b) { Put<uint8_t>(b, kCodecAt, 9); }},
        {"manifest_codec_not_of_the_recipe", kInvalid,
         "band 0 layer 0: codec int4, the recipe \"\" says raw",
         [](std::string& b) { Put<uint8_t>(b, kCodecAt, 3); }},
        {"manifest_system_tokens_overflow", kInvalid, "kSystemTokensMax",
         [](std::string& b) { Put<uint64_t>(b, kSystemTokensAt, ~uint64_t{0}); }},
        {"manifest_context_tokens_overflow", kInvalid, "kContextTokensMax",
         [](std::string& b) { Put<uint64_t>(b, kContextTokensAt, ~uint64_t{0} - 5); }},
        {"manifest_rows_overflow", kInvalid, "rows is 4294967295",
         [](std::string& b) { Put<uint32_t>(b, kCodecAt + 1, 0xFFFFFFFF); }},
        {"segment_heads_overlap", kInvalid, "encoded_bytes",
         [](std::string& b) { Put<uint64_t>(b, kCodecAt + 5, 192); }},
        {"segment_head_bytes_overflow", kInvalid, "encoded_bytes",
         [](std::string& b) { Put<uint64_t>(b, kCodecAt + 5, ~uint64_t{63}); }},
    }),
    [](const auto& test) { return test.param.name; });

TEST(HostileManifestTest, MoreThanTheLargestManifestIsRefusedUnread) {
  const std::string bytes(limits::kManifestBytesMax + 1, 'x');
  EXPECT_THAT(DecodeManifest(AsBytes(bytes)), StatusIs(kInvalid, HasSubstr("kManifestBytesMax")));
}

// What the encoding allows and Validate must refuse.
struct Inconsistent {
  const char* name;
  const char* message;
  std::function<void(Manifest&)> apply;
};
void PrintTo(const Inconsistent& c, std::ostream* os) { *os << c.name; }

class InconsistentManifestTest : public ::testing::TestWithParam<Inconsistent> {};

HeadEntry& Head(Manifest& m, uint32_t band, uint32_t layer, uint32_t head) {
  return m.bands[band].layers[layer].heads[head];
}

// Changes a row count together with the size that follows from it.
void SetRows(Manifest& m, HeadEntry& head, uint32_t rows) {
  head.rows = rows;
  head.encoded_bytes = LayOutHeadBlock(m.geometry, rows).bytes;
  if (rows == 0) head.crc32c = Crc32c();
}

// Band 0 global and sliding layer, three bands.
Manifest Mixed() {
  ObjectShape shape = TinyShape();
  shape.geometry.layers = {LayerKind::kGlobal, LayerKind::kSliding};
  shape.context_tokens = 20;
  shape.window = 6;
  shape.edges = BandEdges::Parse("0.2,0.5,1").value();
  return *MakeRandomObject(shape).manifest;
}

TEST_P(InconsistentManifestTest, IsRefused) {
  Manifest m = Mixed();
  KVTIER_ASSERT_OK(m.Validate());
  GetParam().apply(m);
  EXPECT_THAT(m.Validate(), StatusIs(kInvalid, HasSubstr(GetParam().message)));
}

INSTANTIATE_TEST_SUITE_P(
    Manifest, InconsistentManifestTest,
    ::testing::ValuesIn(std::vector<Inconsistent>{
        {"key_zero", "key is", [](Manifest& m) { m.key = Key(); }},
        {"upload_id_zero", "upload_id is", [](Manifest& m) { m.upload_id = UploadId(); }},
        {"model_name_long", "model_name", [](Manifest& m) { m.model_name.assign(257, 'm'); }},
        {"recipe_long", "recipe", [](Manifest& m) { m.recipe.assign(257, 'm'); }},
        {"no_tokens", "no tokens", [](Manifest& m) { m.system_tokens = m.context_tokens = 0; }},
        {"block_hash_without_block", "last_block_hash",
         [](Manifest& m) {
           m.last_block_hash = TokenBlockHash::FromBytes(std::string(32, 'h')).value();
         }},
        {"edges_not_ascending", "does not lie above",
         [](Manifest& m) { m.bands[1].edge = m.bands[0].edge; }},
        {"fidelity_of_no_chunk", "of 0 chunks",
         [](Manifest& m) {
           m.fidelity = Fidelity{0, 20, {1, 2, 3}};
         }},
        {"fidelity_of_too_many_tokens", "21 tokens of 1 chunks",
         [](Manifest& m) {
           m.fidelity = Fidelity{1, 21, {1, 2, 3}};
         }},
        {"fidelity_of_fewer_tokens_than_chunks", "2 tokens of 3 chunks",
         [](Manifest& m) {
           m.fidelity = Fidelity{3, 2, {1, 2, 2}};
         }},
        {"fidelity_of_other_bands", "of 2 bands, the object has 3",
         [](Manifest& m) {
           m.fidelity = Fidelity{1, 20, {1, 2}};
         }},
        {"fidelity_of_more_than_all", "band 2 has 21 right of 20",
         [](Manifest& m) {
           m.fidelity = Fidelity{1, 20, {1, 2, 21}};
         }},
        {"fidelity_measured_nowhere", "at no band",
         [](Manifest& m) {
           m.fidelity = Fidelity{1, 20, {std::nullopt, std::nullopt, std::nullopt}};
         }},
        {"rows_of_the_lower_bands_above_length", "rows of all bands are 22",
         [](Manifest& m) {
           // Ends at 0.5, so that not every row need be there; but no row twice.
           m.bands.pop_back();
           const uint32_t rows = Head(m, 0, 0, 0).rows + Head(m, 1, 0, 0).rows;
           SetRows(m, Head(m, 1, 0, 0), Head(m, 1, 0, 0).rows + 22 - rows);
         }},
        {"rank_lost_below_one", "band 1: ranks",
         [](Manifest& m) {
           m.bands.pop_back();
           SetRows(m, Head(m, 1, 0, 0), Head(m, 1, 0, 0).rows - 1);
         }},
        {"no_bands", "none", [](Manifest& m) { m.bands.clear(); }},
        {"layer_missing", "1 layers", [](Manifest& m) { m.bands[1].layers.pop_back(); }},
        {"head_missing", "1 heads", [](Manifest& m) { m.bands[2].layers[0].heads.pop_back(); }},
        {"rows_above_length", "21 tokens", [](Manifest& m) { SetRows(m, Head(m, 2, 0, 0), 22); }},
        {"protected_rows_missing", "protected",
         [](Manifest& m) { SetRows(m, Head(m, 0, 0, 1), 0); }},
        {"row_lost", "rows of all bands are 20",
         [](Manifest& m) { SetRows(m, Head(m, 1, 0, 0), Head(m, 1, 0, 0).rows - 1); }},
        {"row_moved_between_bands", "band 0: ranks 9",
         [](Manifest& m) {
           HeadEntry& from = Head(m, 2, 0, 0);
           HeadEntry& to = Head(m, 0, 0, 0);
           SetRows(m, from, from.rows - 1);
           SetRows(m, to, to.rows + 1);
         }},
        {"row_moved_between_heads", "rows of all bands",
         [](Manifest& m) {
           SetRows(m, Head(m, 1, 0, 0), Head(m, 1, 0, 0).rows - 1);
           SetRows(m, Head(m, 1, 0, 1), Head(m, 1, 0, 1).rows + 1);
         }},
        {"sliding_rows_above_band_0", "a sliding layer has rows",
         [](Manifest& m) { SetRows(m, Head(m, 1, 1, 0), 1); }},
        {"sliding_windows_differ", "differ in their window",
         [](Manifest& m) { SetRows(m, Head(m, 0, 1, 1), 5); }},
        {"bytes_do_not_follow_from_rows", "encoded_bytes",
         [](Manifest& m) { Head(m, 0, 0, 0).encoded_bytes += 64; }},
        {"checksum_of_nothing", "no rows",
         [](Manifest& m) { Head(m, 1, 1, 0).crc32c = Crc32c(1); }},
        {"threshold_nan", "threshold", [](Manifest& m) { m.bands[1].threshold = std::nanf(""); }},
        {"threshold_infinite", "threshold", [](Manifest& m) { m.bands[0].threshold = kInfinity; }},
        {"threshold_minus_infinite", "threshold",
         [](Manifest& m) { m.bands[2].threshold = -kInfinity; }},
        {"threshold_rises", "lies above",
         [](Manifest& m) { m.bands[2].threshold = std::nextafter(m.bands[1].threshold, 1.0f); }},
        {"score_mass_nan", "score_mass", [](Manifest& m) { m.bands[1].score_mass = std::nan(""); }},
        {"score_mass_negative", "score_mass", [](Manifest& m) { m.bands[1].score_mass = -1; }},
        {"score_mass_infinite", "score_mass",
         [](Manifest& m) { m.bands[1].score_mass = static_cast<double>(kInfinity); }},
    }),
    [](const auto& test) { return test.param.name; });

// The same rows under the count of another recipe.
TEST(ManifestRecipeTest, RowCountsFollowTheRecipe) {
  const std::string head = "head/1;scores=" + std::string(64, 'a');
  ObjectShape shape = TinyShape();
  shape.context_tokens = 13;
  shape.edges = BandEdges::Parse("0.3,0.5,1").value();
  const std::vector<std::pair<std::string, const char*>> recipes = {
      {"kvzip/1", ""},
      {"uniform/1", "every head has 3"},
      {head, "a whole head has 13"},
      {"kvpress/1", "ranks 19 pairs, its edges ask for 17"}};
  Manifest exact = *MakeRandomObject(shape).manifest;
  for (const auto& [recipe, message] : recipes) {
    shape.recipe = recipe;
    const Manifest good = *MakeRandomObject(shape).manifest;
    KVTIER_EXPECT_OK(good.Validate());
    Manifest wrong = exact;
    wrong.recipe = recipe;
    if (recipe == "kvzip/1") {
      KVTIER_EXPECT_OK(wrong.Validate());
      continue;
    }
    EXPECT_THAT(wrong.Validate(), StatusIs(kInvalid, HasSubstr(message)));
    wrong = good;
    wrong.recipe = "kvzip/1";
    EXPECT_THAT(wrong.Validate(), StatusIs(kInvalid)) << recipe;
  }
}

TEST(ManifestRecipeTest, AHeadThatIsCutIsRefused) {
  ObjectShape shape = TinyShape();
  shape.recipe = "head/1;scores=" + std::string(64, 'a');
  shape.edges = BandEdges::Parse("0.5,1").value();
  Manifest m = *MakeRandomObject(shape).manifest;
  // Two whole heads are in band 0, two in band 1. A row of each goes to the other: the sums hold.
  HeadEntry* in_first = nullptr;
  HeadEntry* in_second = nullptr;
  for (uint32_t head = 0; head < 4; ++head) {
    HeadEntry& low = Head(m, 0, head / 2, head % 2);
    HeadEntry& high = Head(m, 1, head / 2, head % 2);
    const bool kept = high.rows == 0;
    if ((kept ? in_first : in_second) != nullptr) continue;
    (kept ? in_first : in_second) = &low;
    SetRows(m, low, kept ? 5 : 2);
    SetRows(m, high, kept ? 1 : 4);
  }
  ASSERT_NE(in_first, nullptr);
  ASSERT_NE(in_second, nullptr);
  EXPECT_THAT(m.Validate(), StatusIs(kInvalid, HasSubstr("a whole head has 5")));
}

TEST(ManifestThresholdTest, EqualThresholdsAreTies) {
  Manifest m = Mixed();
  m.bands[1].threshold = m.bands[2].threshold = m.bands[0].threshold;
  KVTIER_EXPECT_OK(m.Validate());
}

TEST(ManifestThresholdTest, ABandThatRanksNothingSaysSo) {
  ObjectShape shape = TinyShape();
  shape.geometry.layers = {LayerKind::kGlobal};
  shape.geometry.kv_heads = 1;
  shape.edges = BandEdges::Parse("0.1,0.2,0.3,1").value();  // k = 0, 1, 1, 5
  Manifest m = *MakeRandomObject(shape).manifest;
  EXPECT_EQ(m.bands[0].threshold, kInfinity);
  EXPECT_EQ(m.bands[2].threshold, kInfinity);
  KVTIER_EXPECT_OK(m.Validate());
  m.bands[2].threshold = m.bands[1].threshold;
  EXPECT_THAT(m.Validate(), StatusIs(kInvalid, HasSubstr("ranks no pairs")));
  m.bands[2].threshold = kInfinity;
  m.bands[2].score_mass = 1;
  EXPECT_THAT(m.Validate(), StatusIs(kInvalid, HasSubstr("ranks no pairs")));
}

TEST(ManifestThresholdTest, BandsOfFirstTokensAloneMayHaveLowScores) {
  ObjectShape shape = TinyShape();
  shape.system_tokens = 0;
  shape.edges = BandEdges::Parse("0.2,0.5,1").value();  // k(0) = 4 = one first token per head
  Manifest m = *MakeRandomObject(shape).manifest;
  m.bands[0].threshold = -1000;
  KVTIER_EXPECT_OK(m.Validate());
  m.bands[0].threshold = kInfinity;
  EXPECT_THAT(m.Validate(), StatusIs(kInvalid, HasSubstr("threshold")));
}

}  // namespace
}  // namespace kvtier
