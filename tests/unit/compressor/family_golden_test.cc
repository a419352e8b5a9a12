// Tiny checkpoints of every family against transformers (tests/golden/README.md): each loads as it
// lies in its folder and computes the same numbers, in one piece, in several, and from an object.
#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <ostream>
#include <set>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/status_matchers.h"
#include "compressor/cpu_backend.h"
#include "compressor/decoder.h"
#include "compressor/forward.h"
#include "compressor/pipeline.h"
#include "compressor/reference_backend.h"
#include "compressor/safetensors.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/segment.h"
#include "tests/testing/paths.h"
#include "tests/unit/compressor/golden_tensors.h"

namespace kvtier {
namespace {

const std::string kFolder = SourcePath("tests/golden/families");

// Maximum absolute error, times max(1, rms of the golden tensor).
constexpr double kTolerance = 1e-4;

struct Case {
  std::string name;
  bool reference;  // Which backend.
};
void PrintTo(const Case& c, std::ostream* out) {
  *out << c.name << (c.reference ? " reference" : " cpu");
}

std::vector<Case> Cases() {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(kFolder)) {
    names.insert(entry.path().filename().string());
  }
  std::vector<Case> cases;
  for (const std::string& name : names) {
    for (bool reference : {true, false}) cases.push_back({name, reference});
  }
  return cases;
}

void ExpectClose(const std::vector<float>& got, const std::vector<float>& want,
                 const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  double squares = 0;
  double worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_TRUE(std::isfinite(got[i])) << what << " at " << i;
    squares += double{want[i]} * want[i];
    worst = std::max(worst, std::abs(double{got[i]} - want[i]));
  }
  const double rms = std::sqrt(squares / static_cast<double>(want.size()));
  EXPECT_LE(worst, kTolerance * std::max(1.0, rms)) << what << ", rms " << rms;
}

class FamilyGoldenTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const std::string folder = kFolder + "/" + GetParam().name;
    KVTIER_ASSERT_OK_AND_ASSIGN(golden_, SafetensorsFile::Open(folder + "/expected.safetensors"));
    backend_ = GetParam().reference ? MakeReferenceBackend()
                                    : MakeCpuBackend({.threads = 2, .compute = CpuCompute::kF32});
    KVTIER_ASSERT_OK_AND_ASSIGN(model_, Model::Load(folder, *backend_));
    ids_ = Golden<uint32_t>("ids");
  }

  template <typename T>
  std::vector<T> Golden(const std::string& name) {
    return GoldenTensor<T>(*golden_, name);
  }

  const ModelConfig& config() const { return model_->config(); }

  // Runs all ids in pieces of `piece` and compares everything.
  void CheckForward(int64_t piece) {
    SCOPED_TRACE(::testing::Message() << "pieces of " << piece);
    const int64_t tokens = static_cast<int64_t>(ids_.size());
    KVTIER_ASSERT_OK_AND_ASSIGN(
        DenseCache cache,
        DenseCache::Create(*backend_, config().MakeGeometry(DType::kF32), tokens));
    KVTIER_ASSERT_OK_AND_ASSIGN(ForwardScratch scratch, ForwardScratch::Create(*model_, tokens));
    const auto width = static_cast<size_t>(config().hidden);
    std::vector<float> logits;
    std::vector<std::vector<float>> hidden(static_cast<size_t>(config().layers) + 1);
    for (int64_t begin = 0; begin < tokens; begin += piece) {
      const int64_t rows = std::min(piece, tokens - begin);
      const auto keep = [&](int64_t layer) {
        const auto* x = static_cast<const float*>(scratch.x.data());
        auto& to = hidden[static_cast<size_t>(layer)];
        to.insert(to.end(), x, x + static_cast<size_t>(rows) * width);
      };
      ForwardPlan plan{.tail = &cache, .first_position = begin};
      // The residual stream still holds the layer's input here.
      plan.on_queries = [&](int64_t layer, TensorView, KvLayerView) {
        keep(layer);
        return absl::OkStatus();
      };
      std::vector<float> some;
      KVTIER_ASSERT_OK(Forward(
          *model_, std::span(ids_).subspan(static_cast<size_t>(begin), static_cast<size_t>(rows)),
          plan, scratch, {}, &some));
      keep(config().layers);
      logits.insert(logits.end(), some.begin(), some.end());
    }
    ExpectClose(logits, Golden<float>("logits"), "logits");
    const std::vector<float> all_hidden = Golden<float>("hidden");
    const size_t per_layer = ids_.size() * width;
    for (size_t layer = 0; layer < hidden.size(); ++layer) {
      ExpectClose(hidden[layer],
                  {all_hidden.begin() + static_cast<int64_t>(layer * per_layer),
                   all_hidden.begin() + static_cast<int64_t>((layer + 1) * per_layer)},
                  "hidden " + std::to_string(layer));
    }
    CheckCache(cache);
  }

  void CheckCache(const DenseCache& cache) {
    const std::vector<uint32_t> positions = Golden<uint32_t>("cache_positions");
    const size_t floats = positions.size() * static_cast<size_t>(config().head_dim);
    const std::vector<float> golden_keys = Golden<float>("keys");
    const std::vector<float> golden_values = Golden<float>("values");
    size_t at = 0;
    for (int64_t layer = 0; layer < config().layers; ++layer) {
      for (int64_t head = 0; head < config().kv_heads; ++head, at += floats) {
        std::vector<float> keys(floats);
        std::vector<float> values(floats);
        KVTIER_ASSERT_OK(backend_->GatherRows(cache.layer(layer), head, positions,
                                              AsMutableBytes(std::span(keys)).data(),
                                              AsMutableBytes(std::span(values)).data()));
        const auto begin = static_cast<int64_t>(at);
        const auto end = static_cast<int64_t>(at + floats);
        const std::string where = " of layer " + std::to_string(layer);
        ExpectClose(keys, {golden_keys.begin() + begin, golden_keys.begin() + end}, "keys" + where);
        ExpectClose(values, {golden_values.begin() + begin, golden_values.begin() + end},
                    "values" + where);
      }
    }
  }

  std::unique_ptr<SafetensorsFile> golden_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Model> model_;
  std::vector<uint32_t> ids_;
};

TEST_P(FamilyGoldenTest, ComputesWhatTransformersComputes) {
  CheckForward(static_cast<int64_t>(ids_.size()));
}

TEST_P(FamilyGoldenTest, ComputesTheSameInOddPieces) { CheckForward(5); }

// Prefill, repeat pass, packing and decoding: with every pair kept, the tokens after the context
// have the logits of a dense pass, sliding layers included.
TEST_P(FamilyGoldenTest, AnswersFromAnObjectAsFromTheDenseCache) {
  const size_t context = ids_.size() - 6;
  const Pipeline pipeline(*model_, {.kv_dtype = DType::kF32, .prefill_rows = 7});
  CompressInput input;
  input.context = std::span(ids_).first(context);
  input.system = std::vector<uint32_t>();
  ASSERT_GT(model_->profile().ChunkCount(context), 1u);
  KVTIER_ASSERT_OK_AND_ASSIGN(CompressedObject object, pipeline.Compress(input, {}, CancelToken()));
  const Manifest& manifest = *object.manifest;
  for (uint32_t band = 0; band < manifest.bands.size(); ++band) {
    for (uint32_t layer = 0; layer < manifest.geometry.layer_count(); ++layer) {
      const SegmentRef& segment = object.segment(BandIndex(band), LayerIndex(layer));
      KVTIER_EXPECT_OK(
          VerifySegmentContent(manifest, BandIndex(band), LayerIndex(layer), segment.bytes()));
      if (band == 0 && config().layer_window(layer) > 0) {
        EXPECT_EQ(manifest.segment(BandIndex(0), LayerIndex(layer)).heads[0].rows,
                  std::min<uint64_t>(context, static_cast<uint64_t>(config().window)));
      }
    }
  }
  KVTIER_ASSERT_OK_AND_ASSIGN(
      auto cache, RaggedCache::Create(object.manifest, static_cast<uint32_t>(manifest.bands.size()),
                                      HeadRange{0, manifest.geometry.kv_heads}, object.segments));
  KVTIER_ASSERT_OK_AND_ASSIGN(auto decoder, Decoder::Create(*model_, cache, 6));
  const std::vector<float> golden = Golden<float>("logits");
  const size_t vocabulary = static_cast<size_t>(config().vocabulary);
  const std::vector<float> want(golden.begin() + static_cast<int64_t>(context * vocabulary),
                                golden.end());
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::vector<float> at_once,
                              decoder->AppendAllLogits(std::span(ids_).subspan(context)));
  ExpectClose(at_once, want, "six tokens at once");
  decoder->Reset();
  std::vector<float> one_by_one;
  for (size_t i = context; i < ids_.size(); ++i) {
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto logits, decoder->Append({&ids_[i], 1}));
    one_by_one.insert(one_by_one.end(), logits.begin(), logits.end());
  }
  ExpectClose(one_by_one, want, "one by one");
}

INSTANTIATE_TEST_SUITE_P(Families, FamilyGoldenTest, ::testing::ValuesIn(Cases()),
                         [](const ::testing::TestParamInfo<Case>& test) {
                           return test.param.name + (test.param.reference ? "_reference" : "_cpu");
                         });

// The test above would pass over an empty folder.
TEST(FamilyGoldenListTest, HasEveryFamilyTwice) {
  std::map<ModelFamily, int> count;
  const auto backend = MakeReferenceBackend();
  for (const Case& c : Cases()) {
    if (!c.reference) continue;
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto model, Model::Load(kFolder + "/" + c.name, *backend));
    ++count[model->config().family];
  }
  for (ModelFamily family :
       {ModelFamily::kLlama, ModelFamily::kQwen2, ModelFamily::kQwen3, ModelFamily::kGemma3}) {
    EXPECT_GE(count[family], 2) << ModelFamilyName(family);
  }
}

}  // namespace
}  // namespace kvtier
