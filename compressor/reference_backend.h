// The plain twin of every backend: loops that a reader can check against the definitions in
// docs/recipes.md, sums in double. Slow on purpose; tests compare the others with it.
#ifndef KVTIER_COMPRESSOR_REFERENCE_BACKEND_H_
#define KVTIER_COMPRESSOR_REFERENCE_BACKEND_H_

#include <memory>

#include "compressor/backend.h"

namespace kvtier {

std::unique_ptr<Backend> MakeReferenceBackend();

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_REFERENCE_BACKEND_H_
