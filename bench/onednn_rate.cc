#include "bench/onednn_rate.h"

#include <cstring>
#include <exception>

#include <oneapi/dnnl/dnnl.hpp>

#include "absl/strings/str_cat.h"
#include "base/half.h"
#include "base/status_macros.h"
#include "bench/timing.h"

namespace kvtier::bench {
namespace {

using dnnl::memory;

// Any values do, as long as none is subnormal or not finite.
void FillWithOnes(memory& to, DType dtype) {
  char* data = static_cast<char*>(to.get_data_handle());
  const float one = 1;
  const uint16_t half = bfloat16(one).bits;
  const size_t size = static_cast<size_t>(DTypeBytes(dtype));
  for (size_t at = 0; at + size <= to.get_desc().get_size(); at += size) {
    std::memcpy(data + at, dtype == DType::kBf16 ? static_cast<const void*>(&half) : &one, size);
  }
}

}  // namespace

absl::StatusOr<double> OnednnRate(int64_t rows, int64_t in, int64_t out, DType dtype, int runs) {
  try {
    const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
    dnnl::stream stream(engine);
    const auto type = dtype == DType::kBf16 ? memory::data_type::bf16 : memory::data_type::f32;
    const memory::desc x({rows, in}, type, memory::format_tag::ab);
    const memory::desc y({rows, out}, memory::data_type::f32, memory::format_tag::ab);
    const memory::desc any({in, out}, type, memory::format_tag::any);
    const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(x, any, y), engine);
    memory from(x, engine);
    memory weights(description.weights_desc(), engine);
    memory to(y, engine);
    FillWithOnes(from, dtype);
    FillWithOnes(weights, dtype);
    const dnnl::matmul product(description);
    KVTIER_ASSIGN_OR_RETURN(
        const double seconds, MedianSeconds(runs, [&]() -> absl::Status {
          product.execute(stream,
                          {{DNNL_ARG_SRC, from}, {DNNL_ARG_WEIGHTS, weights}, {DNNL_ARG_DST, to}});
          stream.wait();
          return absl::OkStatus();
        }));
    return 2e-9 * static_cast<double>(rows) * static_cast<double>(in) * static_cast<double>(out) /
           seconds;
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("oneDNN: ", error.what()));
  }
}

}  // namespace kvtier::bench
