// What a whole step of decoding costs, replayed and launched: a row of bench_cases.h.
#ifndef KVTIER_TESTS_GPU_DECODE_STEP_BENCH_H_
#define KVTIER_TESTS_GPU_DECODE_STEP_BENCH_H_

#include <cstdint>
#include <functional>

#include "absl/status/statusor.h"
#include "compressor/model.h"
#include "tests/gpu/bench_run.h"

namespace kvtier {

// Steps over an object of random rows that keeps 30 % of `tokens`, in heads of made-up uneven
// lengths, which is made on the model's device and goes again. `time` gives the seconds of one call
// of what it is given. Bytes are those that a step must read: keys and values that are kept, and
// the model's weights without an embedding that is not its LM head.
absl::StatusOr<Figures> MeasureDecodeStep(
    const Model& model, int64_t tokens,
    const std::function<absl::StatusOr<double>(const std::function<absl::Status()>& work)>& time,
    int calls_max, double copy_rate);

}  // namespace kvtier

#endif  // KVTIER_TESTS_GPU_DECODE_STEP_BENCH_H_
