#include "compressor/model.h"

#include <filesystem>
#include <memory>
#include <string>

#include "absl/strings/str_replace.h"
#include "base/bytes.h"
#include "base/status_matchers.h"
#include "compressor/reference_backend.h"
#include "compressor/safetensors.h"
#include "compressor/safetensors_writer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/files.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_model.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;

class ModelTest : public ::testing::Test {
 protected:
  void SetUp() override { KVTIER_ASSERT_OK(WriteTinyModel({}, folder_)); }
  absl::StatusOr<std::unique_ptr<Model>> Load() { return Model::Load(folder_, *backend_); }
  Digest LoadDigest() {
    auto model = Load();
    KVTIER_EXPECT_OK(model);
    return (*model)->digest();
  }
  // Rewrites the weights without, with, or with a changed tensor.
  template <typename Edit>
  void EditWeights(Edit edit) {
    const std::string path = folder_ + "/model.safetensors";
    auto file = SafetensorsFile::Open(path);
    KVTIER_ASSERT_OK(file);
    std::map<std::string, SafetensorsEntry> entries = (*file)->entries();
    edit(entries);
    KVTIER_ASSERT_OK(WriteSafetensors(path + ".new", entries));
    std::filesystem::rename(path + ".new", path);
  }
  void EditConfig(const std::string& from, const std::string& to) {
    const std::string path = folder_ + "/config.json";
    WriteFile(path, absl::StrReplaceAll(ReadFile(path), {{from, to}}));
  }

  TempDir dir_;
  const std::string folder_ = dir_.File("tiny");
  std::unique_ptr<Backend> backend_ = MakeReferenceBackend();
};

TEST_F(ModelTest, LoadsWhatTheConfigSays) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto model, Model::Load(folder_ + "/", *backend_));
  EXPECT_EQ(model->name(), "tiny");
  EXPECT_EQ(model->config().layers, 2);
  EXPECT_EQ(model->profile().chunk_tokens, 64u);
  EXPECT_EQ(model->embedding().rows, 264);
  EXPECT_EQ(model->layer(1).gate->out_features(), 48);
  EXPECT_EQ(model->lm_head().in_features(), 32);
  EXPECT_GT(model->weight_bytes(), 264u * 32 * 2);
}

TEST_F(ModelTest, DigestFollowsConfigWeightsAndNames) {
  const Digest base = LoadDigest();
  EXPECT_EQ(LoadDigest(), base);
  FlipBit(folder_ + "/model.safetensors",
          std::filesystem::file_size(folder_ + "/model.safetensors") - 1);
  const Digest flipped = LoadDigest();
  EXPECT_NE(flipped, base);
  EditConfig("1e-05", "2e-05");
  EXPECT_NE(LoadDigest(), flipped);
  std::filesystem::rename(folder_ + "/model.safetensors", folder_ + "/a.safetensors");
  EXPECT_NE(LoadDigest(), flipped);
}

TEST_F(ModelTest, ReadsWeightsSplitOverFiles) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto file,
                              SafetensorsFile::Open(folder_ + "/model.safetensors"));
  std::map<std::string, SafetensorsEntry> first = file->entries();
  const std::map<std::string, SafetensorsEntry> second = {*first.find("model.norm.weight")};
  KVTIER_ASSERT_OK(WriteSafetensors(folder_ + "/b.safetensors", second));
  KVTIER_ASSERT_OK(WriteSafetensors(folder_ + "/a.safetensors", first));
  std::filesystem::remove(folder_ + "/model.safetensors");
  EXPECT_THAT(Load(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("another file")));
  first.erase("model.norm.weight");
  KVTIER_ASSERT_OK(WriteSafetensors(folder_ + "/a.safetensors", first));
  KVTIER_EXPECT_OK(Load());
}

TEST_F(ModelTest, NamesTheTensorThatIsWrong) {
  const std::string norm = "model.layers.1.input_layernorm.weight";
  EditWeights([&](auto& entries) { entries.erase(norm); });
  EXPECT_THAT(Load(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(norm)));
  SetUp();
  EditWeights([&](auto& entries) { entries["model.layers.2.extra"] = entries[norm]; });
  EXPECT_THAT(Load(), StatusIs(absl::StatusCode::kInvalidArgument,
                               HasSubstr("\"model.layers.2.extra\", shape [32], is unexpected")));
  SetUp();
  EditWeights([&](auto& entries) { entries[norm].shape = {32, 1}; });
  EXPECT_THAT(Load(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("shape [32, 1]")));
  SetUp();
  EditWeights([&](auto& entries) { entries[norm].dtype = "I16"; });
  EXPECT_THAT(Load(), StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("dtype I16")));
  SetUp();
  EditWeights([&](auto& entries) {
    entries["model.layers.0.self_attn.rotary_emb.inv_freq"] = entries[norm];
  });
  KVTIER_EXPECT_OK(Load());
}

TEST_F(ModelTest, TiedHeadMayBeAbsentOrACopy) {
  KVTIER_ASSERT_OK(WriteTinyModel({.tied_embeddings = true}, folder_));
  KVTIER_EXPECT_OK(Load());
  EditWeights(
      [](auto& entries) { entries["lm_head.weight"] = entries["model.embed_tokens.weight"]; });
  KVTIER_EXPECT_OK(Load());
  KVTIER_ASSERT_OK(WriteTinyModel({}, folder_));  // A head of its own ...
  EditConfig("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
  EXPECT_THAT(Load(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("lm_head.weight")));
}

TEST_F(ModelTest, NamesTheFileThatIsNotThere) {
  EXPECT_THAT(Model::Load(dir_.File("nowhere"), *backend_),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("nowhere")));
  for (const char* name : {"config.json", "kvtier_prompt_profile.json", "model.safetensors"}) {
    SetUp();
    std::filesystem::remove(folder_ + "/" + name);
    EXPECT_THAT(Load(), StatusIs(absl::StatusCode::kNotFound)) << name;
  }
  SetUp();
  EditConfig("\"vocab_size\": 264", "\"vocab_size\": 100");
  EXPECT_THAT(Load(), StatusIs(absl::StatusCode::kInvalidArgument)) << "the profile's ids";
}

}  // namespace
}  // namespace kvtier
