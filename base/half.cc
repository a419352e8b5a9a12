#include "base/half.h"

#include "base/log.h"

namespace kvtier {
namespace {

template <typename To, typename From>
void Convert(std::span<const From> from, std::span<To> to) {
  KVTIER_CHECK_EQ(from.size(), to.size());
  const From* const __restrict source = from.data();
  To* const __restrict target = to.data();
  for (size_t i = 0; i < from.size(); ++i) target[i] = static_cast<To>(source[i]);
}

}  // namespace

void ConvertToFloat(std::span<const bfloat16> from, std::span<float> to) { Convert(from, to); }
void ConvertToFloat(std::span<const float16> from, std::span<float> to) { Convert(from, to); }
void ConvertFromFloat(std::span<const float> from, std::span<bfloat16> to) { Convert(from, to); }
void ConvertFromFloat(std::span<const float> from, std::span<float16> to) { Convert(from, to); }

}  // namespace kvtier
