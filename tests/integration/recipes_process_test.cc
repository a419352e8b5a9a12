// Recipes through the servers: asked for by name, stored under keys of their own, answered from.
#include <map>
#include <memory>
#include <set>
#include <string>

#include "base/bytes.h"
#include "compressor/cpu_backend.h"
#include "compressor/head_scores.h"
#include "compressor/model.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/manifest.h"
#include "tests/integration/pipeline_fixture.h"

namespace kvtier {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class RecipesTest : public PipelineTest {
 protected:
  // A file of head scores for the model in `model_`.
  std::string MakeHeadScores() {
    const std::unique_ptr<Backend> backend = MakeCpuBackend({.threads = 1});
    const absl::StatusOr<std::unique_ptr<Model>> model = Model::Load(model_, *backend);
    EXPECT_THAT(model, IsOk());
    HeadScores scores;
    scores.layers = 2;
    scores.kv_heads = 2;
    scores.log_scores = {-1, -4, -2, -3};
    scores.model_digest = (*model)->digest();
    const std::string path = dir_.File("heads.safetensors");
    EXPECT_THAT(SaveHeadScores(path, scores, {}), IsOk());
    return path;
  }
};

TEST_F(RecipesTest, EachIsStoredUnderItsOwnKeyAndAnswersAtEveryRatio) {
  StartStore();
  // fp32 rows: the order in which bands are attended to then hardly changes an answer.
  StartCompressor({"--head_scores=" + MakeHeadScores(), "--kv_dtype=f32"});
  StartWorker();
  const Ids context = RandomIds(150, /*seed=*/1);
  const Ids question = RandomIds(5, /*seed=*/2);
  std::set<std::string> keys;
  std::map<std::string, Ids> whole;  // Answers from the whole cache.
  for (const std::string recipe :
       {"", "kvpress", "kvzip+", "uniform", "full-softmax", "head", "kvzip/1"}) {
    SCOPED_TRACE(recipe);
    v1::CompressRequest request = MakeRequest(context);
    request.set_recipe(recipe);
    KVTIER_ASSERT_OK_AND_ASSIGN(const v1::CompressResult result, Compress(request));
    EXPECT_EQ(result.computed(), recipe != "kvzip/1") << "the default recipe has another key";
    keys.insert(result.object().name().key());
    KVTIER_ASSERT_OK_AND_ASSIGN(const Manifest manifest,
                                DecodeManifest(AsBytes(result.manifest())));
    EXPECT_EQ(result.object().recipe(), manifest.recipe);
    EXPECT_THAT(manifest.recipe, HasSubstr(recipe.empty() ? "kvzip/1" : recipe));
    for (const double ratio : {0.3, 1.0}) {
      KVTIER_ASSERT_OK_AND_ASSIGN(const v1::AttachResponse attached,
                                  Attach(result.object().name().key(), ratio));
      KVTIER_ASSERT_OK_AND_ASSIGN(const Ids answer, Ask(attached.attachment(), question));
      EXPECT_FALSE(answer.empty());
      if (ratio == 1) whole[recipe] = answer;
    }
  }
  EXPECT_EQ(keys.size(), 6u);
  // What is kept at ratio 1 does not depend on the recipe.
  for (const auto& [recipe, answer] : whole) EXPECT_EQ(answer, whole[""]) << recipe;
}

TEST_F(RecipesTest, RefusalsNameWhatIsKnownAndWhatIsMissing) {
  StartStore();
  StartCompressor({"--recipe=uniform"});
  v1::CompressRequest request = MakeRequest(RandomIds(20, /*seed=*/1));
  request.set_recipe("magic");
  EXPECT_THAT(Compress(request),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("magic"), HasSubstr("kvzip, kvpress, kvzip+, uniform"))));
  request.set_recipe("head");
  EXPECT_THAT(Compress(request), StatusIs(absl::StatusCode::kInvalidArgument,
                                          HasSubstr("no head scores of model tiny")));
  request.clear_recipe();
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::CompressResult result, Compress(request));
  EXPECT_EQ(result.object().recipe(), "uniform/1");
}

TEST_F(RecipesTest, HeadRecipeWithoutScoresStopsTheServerAtOnce) {
  StartStore();
  EXPECT_FALSE(ServerProcess::Start("kvtier-compressor", {"--model=" + model_, "--recipe=head",
                                                          "--store=" + store_->address()})
                   .ok());
}

TEST_F(RecipesTest, HeadScoresOfAnotherModelStopTheServerAtOnce) {
  const std::string scores = MakeHeadScores();
  StartStore();
  model_ = MakeModel("other", {.seed = 2});
  const absl::StatusOr<std::unique_ptr<ServerProcess>> server = ServerProcess::Start(
      "kvtier-compressor",
      {"--model=" + model_, "--head_scores=" + scores, "--store=" + store_->address()});
  EXPECT_FALSE(server.ok());
}

}  // namespace
}  // namespace kvtier
