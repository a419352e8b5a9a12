#include "tests/conformance/decoder_conformance.h"

#include <string>
#include <utility>
#include <vector>

#include "base/status_matchers.h"
#include "compressor/cpu_backend.h"
#include "compressor/decoder.h"
#include "compressor/resident_cache.h"
#include "compressor/sampler.h"
#include "gtest/gtest.h"
#include "tests/unit/compressor/compress_testing.h"

namespace kvtier {
namespace {

// Greedy, the question at once and then token by token.
std::vector<uint32_t> Answer(Decoder& decoder, const std::vector<uint32_t>& query, int tokens) {
  std::vector<uint32_t> answer;
  std::vector<uint32_t> feed = query;
  for (int i = 0; i < tokens; ++i) {
    const auto logits = decoder.Append(feed);
    EXPECT_THAT(logits, IsOk());
    if (!logits.ok()) return answer;
    answer.push_back(Greedy(*logits));
    feed = {answer.back()};
  }
  return answer;
}

}  // namespace

void ExpectDecodesAsTheCpu(std::unique_ptr<Backend> device) {
  ASSERT_NE(device, nullptr);
  ASSERT_FALSE(device->host_addressable());
  const TestModel on_cpu = MakeTestModel({}, MakeCpuBackend({.threads = 1}));
  const TestModel on_device = MakeTestModel({}, std::move(device));
  const std::vector<uint32_t> context = RandomTokens(150, /*seed=*/11);
  const std::vector<uint32_t> query = on_cpu.model->profile().WrapQuery(RandomTokens(12, 21));
  struct Case {
    std::string codec;
    DType dtype;
  };
  for (const Case& c : {Case{"raw", DType::kF32}, Case{"raw", DType::kBf16},
                        Case{"int8", DType::kBf16}, Case{"int4", DType::kBf16}}) {
    CompressInput input;
    input.context = context;
    input.codec = c.codec;
    KVTIER_ASSERT_OK_AND_ASSIGN(
        const CompressedObject object,
        Pipeline(*on_cpu.model, {.kv_dtype = c.dtype}).Compress(input, nullptr, CancelToken()));
    for (const uint32_t bands : {1u, 3u, 6u}) {
      SCOPED_TRACE(testing::Message()
                   << c.codec << " " << DTypeName(c.dtype) << ", " << bands << " bands");
      const auto cache = PrefixOf(object, bands);
      KVTIER_ASSERT_OK_AND_ASSIGN(const auto resident,
                                  ResidentCache::Create(*on_device.backend, cache));
      EXPECT_EQ(resident->device_bytes(), cache->bytes());
      KVTIER_ASSERT_OK_AND_ASSIGN(const auto there,
                                  Decoder::Create(*on_device.model, resident, 40));
      KVTIER_ASSERT_OK_AND_ASSIGN(const auto here, Decoder::Create(*on_cpu.model, cache, 40));
      const std::vector<uint32_t> answer = Answer(*there, query, 12);
      EXPECT_EQ(answer, Answer(*here, query, 12));
      // The next question on the same bytes.
      there->Reset();
      EXPECT_EQ(Answer(*there, query, 12), answer);
    }
  }
}

}  // namespace kvtier
