// Upstream: absl/status/status_macros.h, once the packaged abseil carries it.
//
// Propagation of absl::Status and absl::StatusOr out of a function that returns either of them.
//
//   absl::StatusOr<Manifest> Load(ByteSpan bytes) {
//     KVTIER_RETURN_IF_ERROR(CheckMagic(bytes));
//     KVTIER_ASSIGN_OR_RETURN(const uint32_t version, ReadVersion(bytes));
//     KVTIER_ASSIGN_OR_RETURN((auto [head, tail]), Split<Head, Tail>(bytes));
//     ...
//   }
#ifndef KVTIER_BASE_STATUS_MACROS_H_
#define KVTIER_BASE_STATUS_MACROS_H_

#include <utility>

#include "absl/base/optimization.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Evaluates a Status or StatusOr once; returns its status from the enclosing function unless OK.
#define KVTIER_RETURN_IF_ERROR(...)                                \
  do {                                                             \
    ::absl::Status kvtier_status_macro_status =                    \
        ::kvtier::status_macros_internal::AsStatus((__VA_ARGS__)); \
    if (ABSL_PREDICT_FALSE(!kvtier_status_macro_status.ok())) {    \
      return kvtier_status_macro_status;                           \
    }                                                              \
  } while (false)

// Evaluates a StatusOr once; assigns (or initialises) `lhs` from its value, or returns its status.
// `lhs` that contains a comma is written in parentheses. Not an expression: needs its own scope
// after `if` or `for`.
#define KVTIER_ASSIGN_OR_RETURN(lhs, ...)                                                          \
  KVTIER_INTERNAL_ASSIGN_OR_RETURN(KVTIER_INTERNAL_CONCAT(kvtier_status_macro_or_, __LINE__), lhs, \
                                   __VA_ARGS__)

#define KVTIER_INTERNAL_ASSIGN_OR_RETURN(statusor, lhs, ...) \
  auto statusor = (__VA_ARGS__);                             \
  if (ABSL_PREDICT_FALSE(!statusor.ok())) {                  \
    return std::move(statusor).status();                     \
  }                                                          \
  KVTIER_INTERNAL_UNPARENTHESIZE(lhs) = *std::move(statusor)

#define KVTIER_INTERNAL_CONCAT(a, b) KVTIER_INTERNAL_CONCAT_(a, b)
#define KVTIER_INTERNAL_CONCAT_(a, b) a##b

// Removes one pair of parentheses around X if there is one: STRIP (a) and STRIP a both expand to
// STRIP a, and the paste in DROP_ swallows that word.
#define KVTIER_INTERNAL_UNPARENTHESIZE(X) KVTIER_INTERNAL_DROP(KVTIER_INTERNAL_STRIP X)
#define KVTIER_INTERNAL_STRIP(...) KVTIER_INTERNAL_STRIP __VA_ARGS__
#define KVTIER_INTERNAL_DROP(...) KVTIER_INTERNAL_DROP_(__VA_ARGS__)
#define KVTIER_INTERNAL_DROP_(...) KVTIER_INTERNAL_GONE_##__VA_ARGS__
#define KVTIER_INTERNAL_GONE_KVTIER_INTERNAL_STRIP

namespace kvtier::status_macros_internal {

inline absl::Status AsStatus(absl::Status status) { return status; }

template <typename T>
absl::Status AsStatus(const absl::StatusOr<T>& status_or) {
  return status_or.status();
}

template <typename T>
absl::Status AsStatus(absl::StatusOr<T>&& status_or) {
  return std::move(status_or).status();
}

}  // namespace kvtier::status_macros_internal

#endif  // KVTIER_BASE_STATUS_MACROS_H_
