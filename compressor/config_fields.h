// One object of a config.json, key by key. Every key that is read is remembered, so that what is
// left over can be refused: a key that nobody knows may change the computation.
//
//   KVTIER_ASSIGN_OR_RETURN(ConfigFields fields, ConfigFields::Parse(text));
//   KVTIER_ASSIGN_OR_RETURN(const int64_t layers, fields.Count("num_hidden_layers", kLayersMax));
//   KVTIER_RETURN_IF_ERROR(fields.Only("hidden_act", R"("silu")"));   // what is built
//   return fields.RefuseUnknown(kIrrelevantKeys);
//
// A key whose value is null counts as absent everywhere. Messages name file, key (with the objects
// around it: "text_config.head_dim") and value. Not thread-safe.
#ifndef KVTIER_COMPRESSOR_CONFIG_FIELDS_H_
#define KVTIER_COMPRESSOR_CONFIG_FIELDS_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace kvtier {

// INVALID_ARGUMENT: "config.json: <key> <what>".
absl::Status BadConfig(absl::string_view key, absl::string_view what);

class ConfigFields {
 public:
  // INVALID_ARGUMENT: longer than limits::kConfigJsonBytesMax, no JSON object, or as
  // CheckJsonObject (compressor/json_text.h).
  static absl::StatusOr<ConfigFields> Parse(absl::string_view config_json);
  // An object without keys, named `name`.
  static ConfigFields Nothing(absl::string_view name);

  bool Has(const std::string& key);
  // In [1, max]; the default (0: none) when absent. INVALID_ARGUMENT otherwise.
  absl::StatusOr<int64_t> Count(const std::string& key, int64_t max, int64_t otherwise = 0);
  // A whole number in [0, max]. INVALID_ARGUMENT otherwise.
  absl::StatusOr<std::optional<int64_t>> CountOrZero(const std::string& key, int64_t max);
  // INVALID_ARGUMENT: no boolean.
  absl::StatusOr<bool> Flag(const std::string& key, bool otherwise);
  // INVALID_ARGUMENT: no number, or one that is not positive, normal and finite in fp32, in which
  // what computes with it does so.
  absl::StatusOr<std::optional<double>> Positive(const std::string& key);
  // INVALID_ARGUMENT: no string.
  absl::StatusOr<std::optional<std::string>> Text(const std::string& key);
  // The items of a list as JSON. INVALID_ARGUMENT: no list of `count` items.
  absl::StatusOr<std::optional<std::vector<std::string>>> Items(const std::string& key,
                                                                int64_t count);
  // INVALID_ARGUMENT: no object. Its keys are not keys of this one.
  absl::StatusOr<std::optional<ConfigFields>> Object(const std::string& key);
  bool IsObject(const std::string& key);
  // Whether two keys have equal values.
  bool Equal(const std::string& key, const std::string& other);
  // Whether the value is `json`; false when absent. REQUIRES: `json` is JSON.
  bool Is(const std::string& key, absl::string_view json);

  // UNIMPLEMENTED unless absent or `json`. REQUIRES: `json` is JSON.
  absl::Status Only(const std::string& key, absl::string_view json);
  // UNIMPLEMENTED: "config.json: <key> = <value> is not built". REQUIRES: Has(key)
  absl::Status NotBuilt(const std::string& key);
  // The same of one of its items.
  absl::Status NotBuilt(const std::string& key, absl::string_view item) const;
  // UNIMPLEMENTED naming a key that was neither read nor is in `ignored`.
  absl::Status RefuseUnknown(std::span<const absl::string_view> ignored) const;

  // Of this object: "text_config." and the like, empty outside.
  const std::string& prefix() const { return prefix_; }

 private:
  struct Json;
  ConfigFields(std::shared_ptr<const Json> object, std::string prefix);

  std::shared_ptr<const Json> object_;
  std::string prefix_;
  std::set<std::string> read_;
};

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_CONFIG_FIELDS_H_
