#include "kvcache/key_descriptor.h"

#include <functional>
#include <set>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/limits.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/sha256.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;

KeyDescriptor Example() {
  KeyDescriptor d;
  d.head.tenant_salt = "default";
  d.head.model_digest = ComputeSha256(AsBytes("model"));
  d.head.kv_dtype = DType::kBf16;
  d.head.rope = "default theta=10000 dim=4";
  d.head.prompt_profile_digest = ComputeSha256(AsBytes("profile"));
  d.head.recipe = "kvzip/1";
  d.head.system_token_ids = {1};
  d.context_token_ids = {10, 11, 12};
  return d;
}

struct Change {
  const char* field;
  std::function<void(KeyDescriptor&)> apply;
};

// Each field of the descriptor changed alone.
std::vector<Change> Changes() {
  return {
      {"tenant_salt", [](KeyDescriptor& d) { d.head.tenant_salt += "x"; }},
      {"model_digest", [](KeyDescriptor& d) { d.head.model_digest = ComputeSha256(AsBytes("m")); }},
      {"adapter", [](KeyDescriptor& d) { d.head.adapter = "lora"; }},
      {"kv_dtype", [](KeyDescriptor& d) { d.head.kv_dtype = DType::kF16; }},
      {"rope", [](KeyDescriptor& d) { d.head.rope += " "; }},
      {"prompt_profile_digest",
       [](KeyDescriptor& d) { d.head.prompt_profile_digest = ComputeSha256(AsBytes("p")); }},
      {"recipe", [](KeyDescriptor& d) { d.head.recipe = "kvzip/2"; }},
      {"system_token_ids", [](KeyDescriptor& d) { d.head.system_token_ids.push_back(0); }},
      {"context_token_ids", [](KeyDescriptor& d) { d.context_token_ids.push_back(0); }},
      {"order of tokens",
       [](KeyDescriptor& d) { std::swap(d.context_token_ids[0], d.context_token_ids[1]); }},
      {"border between system and context",
       [](KeyDescriptor& d) {
         d.head.system_token_ids.push_back(d.context_token_ids.front());
         d.context_token_ids.erase(d.context_token_ids.begin());
       }},
      {"border between two texts",
       [](KeyDescriptor& d) {
         d.head.adapter = "t";
         d.head.tenant_salt.pop_back();
       }},
  };
}

TEST(KeyDescriptorTest, EachFieldChangedAloneChangesTheKey) {
  std::set<Key> keys = {ComputeKey(Example()).value()};
  for (const Change& change : Changes()) {
    KeyDescriptor changed = Example();
    change.apply(changed);
    KVTIER_ASSERT_OK_AND_ASSIGN(const Key key, ComputeKey(changed));
    EXPECT_TRUE(keys.insert(key).second) << change.field;
  }
}

TEST(KeyDescriptorTest, HeadDigestDependsOnTheHeadAlone) {
  const Digest digest = ComputeHeadDigest(Example().head).value();
  for (const Change& change : Changes()) {
    KeyDescriptor changed = Example();
    change.apply(changed);
    const bool context_only = change.field == absl::string_view("context_token_ids") ||
                              change.field == absl::string_view("order of tokens");
    EXPECT_EQ(ComputeHeadDigest(changed.head).value() == digest, context_only) << change.field;
  }
}

TEST(KeyDescriptorTest, KeyIsTheHashOfTheCanonicalBytesHoweverItIsComputed) {
  KeyDescriptor d = Example();
  const std::string canonical = EncodeKeyDescriptor(d).value();
  const Key key = ComputeKey(d).value();
  EXPECT_EQ(ComputeSha256(AsBytes(canonical)).ToHex(), key.ToHex());
  const std::vector<uint32_t> context = std::exchange(d.context_token_ids, {});
  EXPECT_THAT(ComputeKey(d.head, context), IsOkAndHolds(key));
  EXPECT_NE(ComputeKey(d).value(), key);
}

TEST(KeyDescriptorTest, DecodesWhatItEncodes) {
  for (const Change& change : Changes()) {
    KeyDescriptor d = Example();
    change.apply(d);
    const std::string canonical = EncodeKeyDescriptor(d).value();
    KVTIER_ASSERT_OK_AND_ASSIGN(const KeyDescriptor read, DecodeKeyDescriptor(AsBytes(canonical)));
    EXPECT_THAT(EncodeKeyDescriptor(read), IsOkAndHolds(canonical)) << change.field;
  }
}

TEST(KeyDescriptorTest, RefusesEmptyRequiredFieldsAndBrokenLimits) {
  const std::vector<Change> bad = {
      {"tenant_salt", [](KeyDescriptor& d) { d.head.tenant_salt.clear(); }},
      {"tenant_salt", [](KeyDescriptor& d) { d.head.tenant_salt.assign(257, 'a'); }},
      {"model_digest", [](KeyDescriptor& d) { d.head.model_digest = Digest(); }},
      {"adapter", [](KeyDescriptor& d) { d.head.adapter.assign(257, 'a'); }},
      {"kv_dtype", [](KeyDescriptor& d) { d.head.kv_dtype = static_cast<DType>(0); }},
      {"rope", [](KeyDescriptor& d) { d.head.rope.clear(); }},
      {"rope", [](KeyDescriptor& d) { d.head.rope.assign(kRopeTextBytesMax + 1, 'a'); }},
      {"prompt_profile_digest", [](KeyDescriptor& d) { d.head.prompt_profile_digest = Digest(); }},
      {"recipe", [](KeyDescriptor& d) { d.head.recipe.clear(); }},
      {"recipe", [](KeyDescriptor& d) { d.head.recipe.assign(257, 'a'); }},
      {"system_token_ids",
       [](KeyDescriptor& d) { d.head.system_token_ids.resize(limits::kSystemTokensMax + 1); }},
  };
  for (const Change& change : bad) {
    KeyDescriptor d = Example();
    change.apply(d);
    const auto refused =
        StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(absl::StrCat(change.field, ":")));
    EXPECT_THAT(EncodeKeyDescriptor(d), refused);
    EXPECT_THAT(ComputeKey(d), refused);
    EXPECT_THAT(ComputeHeadDigest(d.head), refused);
  }
  const std::vector<uint32_t> too_long(limits::kContextTokensMax + 1);
  EXPECT_THAT(ComputeKey(Example().head, too_long),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("context_token_ids")));
  EXPECT_THAT(ComputeKey(Example().head, std::span(too_long).first(limits::kContextTokensMax)),
              IsOk());
}

// --- hostile encodings --------------------------------------------------------------------------

struct Field {
  uint16_t tag;
  uint8_t type;
  std::string payload;
};

std::string Encode(absl::string_view magic, uint32_t version, const std::vector<Field>& fields) {
  std::string out;
  ByteWriter writer(&out);
  writer.WriteBytes(magic);
  writer.WriteU32(version);
  for (const Field& field : fields) {
    writer.WriteU16(field.tag);
    writer.WriteU8(field.type);
    writer.WriteU64(field.payload.size());
    writer.WriteBytes(field.payload);
  }
  return out;
}

std::vector<Field> ExampleFields() {
  const std::string digest(32, 'd');
  return {{1, 1, "default"}, {2, 2, digest}, {3, 1, ""},
          {4, 3, "\x03"},    {5, 1, "rope"}, {6, 2, digest},
          {7, 1, "kvzip/1"}, {8, 4, ""},     {9, 4, std::string("\x0a\0\0\0", 4)}};
}

constexpr absl::string_view kMagic = "KVTKEYDS";

TEST(KeyDescriptorHostileTest, TheUnchangedEncodingIsFine) {
  KVTIER_EXPECT_OK(DecodeKeyDescriptor(AsBytes(Encode(kMagic, 1, ExampleFields()))));
}

TEST(KeyDescriptorHostileTest, RefusesFieldsThatAreNotTheCanonicalNine) {
  struct Case {
    const char* name;
    std::function<void(std::vector<Field>&)> apply;
    const char* message;
  };
  const auto erase = [](int i) { return [i](std::vector<Field>& f) { f.erase(f.begin() + i); }; };
  const std::vector<Case> cases = {
      {"descriptor_unknown_tag", [](auto& f) { f[3].tag = 77; }, "unknown field 77"},
      {"descriptor_zero_tag", [](auto& f) { f[3].tag = 0; }, "unknown field 0"},
      {"descriptor_unknown_last",
       [](auto& f) {
         f.push_back({10, 1, "x"});
       },
       "after the last"},
      {"descriptor_repeated_field", [](auto& f) { f.insert(f.begin() + 3, f[2]); },
       "adapter: repeated"},
      {"descriptor_repeated_last", [](auto& f) { f.push_back(f.back()); }, "after the last"},
      {"descriptor_misordered", [](auto& f) { std::swap(f[2], f[3]); }, "adapter: missing or out"},
      {"descriptor_missing_first", erase(0), "tenant_salt: missing"},
      {"descriptor_missing_adapter", erase(2), "adapter: missing"},
      {"descriptor_missing_context", erase(8), "context_token_ids: missing"},
      {"descriptor_wrong_type", [](auto& f) { f[4].type = 2; }, "rope: type 2"},
      {"descriptor_short_digest", [](auto& f) { f[1].payload.pop_back(); }, "not 32 bytes"},
      {"descriptor_long_digest", [](auto& f) { f[5].payload += 'd'; }, "not 32 bytes"},
      {"descriptor_empty_enum", [](auto& f) { f[3].payload.clear(); }, "not one byte"},
      {"descriptor_unknown_dtype", [](auto& f) { f[3].payload = "\x09"; }, "unknown value 9"},
      {"descriptor_half_token", [](auto& f) { f[8].payload.pop_back(); }, "whole number"},
      {"descriptor_empty_recipe", [](auto& f) { f[6].payload.clear(); }, "recipe: empty"},
      {"descriptor_zero_digest", [](auto& f) { f[1].payload.assign(32, '\0'); }, "all zero"},
  };
  for (const Case& c : cases) {
    std::vector<Field> fields = ExampleFields();
    c.apply(fields);
    EXPECT_THAT(DecodeKeyDescriptor(AsBytes(Encode(kMagic, 1, fields))),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(c.message)))
        << c.name;
  }
}

TEST(KeyDescriptorHostileTest, RefusesOtherMagicAndVersion) {
  EXPECT_THAT(DecodeKeyDescriptor(AsBytes(Encode("KVTMANIF", 1, ExampleFields()))),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("magic")));
  EXPECT_THAT(DecodeKeyDescriptor(AsBytes(Encode(kMagic, 2, ExampleFields()))),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("version 2")));
}

TEST(KeyDescriptorHostileTest, RefusesEveryTruncation) {
  const std::string whole = Encode(kMagic, 1, ExampleFields());
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_THAT(DecodeKeyDescriptor(AsBytes(absl::string_view(whole).substr(0, size))),
                StatusIs(absl::StatusCode::kInvalidArgument))
        << size;
  }
}

TEST(KeyDescriptorHostileTest, LengthBeyondTheEndAllocatesNothing) {
  std::string bytes = Encode(kMagic, 1, ExampleFields());
  // The length of the last field, whose payload is one token.
  StoreLittleEndian<uint64_t>(~uint64_t{3}, AsMutableBytes(bytes).last(4 + 8).data());
  EXPECT_THAT(DecodeKeyDescriptor(AsBytes(bytes)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("truncated")));
}

}  // namespace
}  // namespace kvtier
