// The golden vectors that an independent generator wrote (tests/golden/make_key_vectors.py).
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "base/bytes.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/key_descriptor.h"
#include "kvcache/token_block_hash.h"
#include "tests/testing/files.h"
#include "tests/testing/paths.h"

namespace kvtier {
namespace {

nlohmann::json ReadVectors() {
  return nlohmann::json::parse(ReadFile(SourcePath("tests/golden/key_vectors.json")));
}

KeyDescriptor FromJson(const nlohmann::json& v) {
  KeyDescriptor d;
  d.head.tenant_salt = v.at("tenant_salt");
  d.head.model_digest = Digest::FromHex(v.at("model_digest").get<std::string>()).value();
  d.head.adapter = v.at("adapter");
  d.head.kv_dtype = DTypeFromName(v.at("kv_dtype").get<std::string>()).value();
  d.head.rope = v.at("rope");
  d.head.prompt_profile_digest =
      Digest::FromHex(v.at("prompt_profile_digest").get<std::string>()).value();
  d.head.recipe = v.at("recipe");
  d.head.system_token_ids = v.at("system_token_ids").get<std::vector<uint32_t>>();
  d.context_token_ids = v.at("context_token_ids").get<std::vector<uint32_t>>();
  return d;
}

TEST(KeyVectorsTest, EncodingKeyAndHashesAreThoseOfTheVectors) {
  const nlohmann::json document = ReadVectors();
  EXPECT_EQ(document.at("token_block_tokens"), kTokenBlockTokens);
  ASSERT_GE(document.at("vectors").size(), 15u);
  for (const nlohmann::json& v : document.at("vectors")) {
    SCOPED_TRACE(v.at("name").get<std::string>());
    const KeyDescriptor d = FromJson(v);
    KVTIER_ASSERT_OK_AND_ASSIGN(const std::string canonical, EncodeKeyDescriptor(d));
    EXPECT_EQ(absl::BytesToHexString(canonical), v.at("canonical_hex").get<std::string>());
    EXPECT_EQ(ComputeKey(d)->ToHex(), v.at("key").get<std::string>());
    KVTIER_ASSERT_OK_AND_ASSIGN(const Digest head_digest, ComputeHeadDigest(d.head));
    EXPECT_EQ(head_digest.ToHex(), v.at("head_digest").get<std::string>());
    std::vector<std::string> hashes;
    for (const TokenBlockHash& hash : ComputeTokenBlockHashes(head_digest, d.context_token_ids)) {
      hashes.push_back(hash.ToHex());
    }
    EXPECT_EQ(hashes, v.at("token_block_hashes").get<std::vector<std::string>>());
  }
}

TEST(KeyVectorsTest, DerivedKeysAreThoseOfTheVectors) {
  const nlohmann::json document = ReadVectors();
  ASSERT_EQ(document.at("derived_keys").size(), 3u);
  for (const nlohmann::json& d : document.at("derived_keys")) {
    std::string from;
    for (const nlohmann::json& v : document.at("vectors")) {
      if (v.at("name") == d.at("from")) from = v.at("key");
    }
    KVTIER_ASSERT_OK_AND_ASSIGN(
        const Key key, DeriveKey(Key::FromHex(from).value(), d.at("recipe").get<std::string>()));
    EXPECT_EQ(key.ToHex(), d.at("key").get<std::string>());
  }
  const Key key = Key::FromHex(std::string(64, 'a')).value();
  const auto invalid = StatusIs(absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(DeriveKey(Key(), "kvzip/1;rect=layer"), invalid);
  EXPECT_THAT(DeriveKey(key, ""), invalid);
  EXPECT_THAT(DeriveKey(key, std::string(257, 'r')), invalid);
}

TEST(KeyVectorsTest, CanonicalBytesDecodeToTheFields) {
  const nlohmann::json document = ReadVectors();
  for (const nlohmann::json& v : document.at("vectors")) {
    SCOPED_TRACE(v.at("name").get<std::string>());
    const std::string canonical = absl::HexStringToBytes(v.at("canonical_hex").get<std::string>());
    const KeyDescriptor expected = FromJson(v);
    KVTIER_ASSERT_OK_AND_ASSIGN(const KeyDescriptor d, DecodeKeyDescriptor(AsBytes(canonical)));
    EXPECT_EQ(d.head.tenant_salt, expected.head.tenant_salt);
    EXPECT_EQ(d.head.model_digest, expected.head.model_digest);
    EXPECT_EQ(d.head.adapter, expected.head.adapter);
    EXPECT_EQ(d.head.kv_dtype, expected.head.kv_dtype);
    EXPECT_EQ(d.head.rope, expected.head.rope);
    EXPECT_EQ(d.head.prompt_profile_digest, expected.head.prompt_profile_digest);
    EXPECT_EQ(d.head.recipe, expected.head.recipe);
    EXPECT_EQ(d.head.system_token_ids, expected.head.system_token_ids);
    EXPECT_EQ(d.context_token_ids, expected.context_token_ids);
  }
}

}  // namespace
}  // namespace kvtier
