// Steps of decoding on a device: replayed bit for bit as launched, and as close to plain passes as
// their types allow, over objects of every codec and over families with windows and norms of heads.
#ifndef KVTIER_TESTS_CONFORMANCE_DECODE_STEP_CONFORMANCE_H_
#define KVTIER_TESTS_CONFORMANCE_DECODE_STEP_CONFORMANCE_H_

#include <functional>
#include <memory>

#include "compressor/backend.h"

namespace kvtier {

// `make` gives backends that offer steps and can capture, each with a device of its own or all on
// one. The tails cross a tile of keys and a range that a plan holds for.
void ExpectReplayedStepsAreLaunchedSteps(
    const std::function<std::unique_ptr<Backend>(DType activations)>& make);

// Two questions on one object at once, on two threads, answered as one after the other.
void ExpectTwoDecodersOfOneObject(std::unique_ptr<Backend> backend);

}  // namespace kvtier

#endif  // KVTIER_TESTS_CONFORMANCE_DECODE_STEP_CONFORMANCE_H_
