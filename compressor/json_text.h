// What must be true of any JSON text from outside before a parser that builds a document sees it.
#ifndef KVTIER_COMPRESSOR_JSON_TEXT_H_
#define KVTIER_COMPRESSOR_JSON_TEXT_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace kvtier {

// OK when `text` is one JSON object, nested at most limits::kJsonDepthMax deep, in which no object
// has a key twice (parsers keep either one, so two readers could see two different files).
// INVALID_ARGUMENT naming `what` and the fault. Allocates in proportion to the text.
absl::Status CheckJsonObject(absl::string_view text, absl::string_view what);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_JSON_TEXT_H_
