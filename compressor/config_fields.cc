#include "compressor/config_fields.h"

#include <algorithm>
#include <limits>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "compressor/json_text.h"

namespace kvtier {

using nlohmann::json;

struct ConfigFields::Json {
  json object;

  // Null when absent or null.
  const json* Find(const std::string& key) const {
    const auto it = object.find(key);
    return it == object.end() || it->is_null() ? nullptr : &*it;
  }
};

namespace {

std::string Shown(const json& value) {
  return value.dump(-1, ' ', /*ensure_ascii=*/true, json::error_handler_t::replace).substr(0, 80);
}

absl::Status RefuseValue(absl::string_view key, absl::string_view value) {
  return absl::UnimplementedError(
      absl::StrCat("config.json: ", key, " = ", value, " is not built"));
}

json FromText(absl::string_view text) { return json::parse(text.begin(), text.end()); }

}  // namespace

absl::Status BadConfig(absl::string_view key, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("config.json: ", key, " ", what));
}

ConfigFields::ConfigFields(std::shared_ptr<const Json> object, std::string prefix)
    : object_(std::move(object)), prefix_(std::move(prefix)) {}

absl::StatusOr<ConfigFields> ConfigFields::Parse(absl::string_view config_json) {
  if (config_json.size() > limits::kConfigJsonBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "config.json: ", config_json.size(), " bytes, at most ", limits::kConfigJsonBytesMax));
  }
  KVTIER_RETURN_IF_ERROR(CheckJsonObject(config_json, "config.json"));
  json object =
      json::parse(config_json.begin(), config_json.end(), nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return absl::InvalidArgumentError("config.json: not a JSON object");
  return ConfigFields(std::make_shared<Json>(Json{std::move(object)}), "");
}

ConfigFields ConfigFields::Nothing(absl::string_view name) {
  return ConfigFields(std::make_shared<Json>(Json{json::object()}), absl::StrCat(name, "."));
}

bool ConfigFields::Has(const std::string& key) {
  read_.insert(key);
  return object_->Find(key) != nullptr;
}

absl::StatusOr<int64_t> ConfigFields::Count(const std::string& key, int64_t max,
                                            int64_t otherwise) {
  if (!Has(key)) {
    if (otherwise > 0) return otherwise;
    return BadConfig(prefix_ + key, "is missing");
  }
  const json& value = *object_->Find(key);
  if (!value.is_number_unsigned() || value.get<uint64_t>() < 1 ||
      value.get<uint64_t>() > static_cast<uint64_t>(max)) {
    return BadConfig(prefix_ + key,
                     absl::StrCat("is ", Shown(value), ", not a whole number in [1, ", max, "]"));
  }
  return value.get<int64_t>();
}

absl::StatusOr<std::optional<int64_t>> ConfigFields::CountOrZero(const std::string& key,
                                                                 int64_t max) {
  if (!Has(key)) return std::optional<int64_t>();
  if (Is(key, "0")) return std::optional<int64_t>(0);
  KVTIER_ASSIGN_OR_RETURN(const int64_t count, Count(key, max));
  return std::optional<int64_t>(count);
}

absl::StatusOr<bool> ConfigFields::Flag(const std::string& key, bool otherwise) {
  if (!Has(key)) return otherwise;
  const json& value = *object_->Find(key);
  if (value.is_boolean()) return value.get<bool>();
  return BadConfig(prefix_ + key, absl::StrCat("is ", Shown(value), ", no boolean"));
}

absl::StatusOr<std::optional<double>> ConfigFields::Positive(const std::string& key) {
  if (!Has(key)) return std::optional<double>();
  const json& value = *object_->Find(key);
  if (!value.is_number() || !(value.get<double>() >= std::numeric_limits<float>::min()) ||
      !(value.get<double>() <= std::numeric_limits<float>::max())) {
    return BadConfig(prefix_ + key, absl::StrCat("is ", Shown(value), ", no positive number"));
  }
  return std::optional<double>(value.get<double>());
}

absl::StatusOr<std::optional<std::string>> ConfigFields::Text(const std::string& key) {
  if (!Has(key)) return std::optional<std::string>();
  const json& value = *object_->Find(key);
  if (!value.is_string()) return BadConfig(prefix_ + key, "is no string");
  return std::optional<std::string>(value.get<std::string>());
}

absl::StatusOr<std::optional<std::vector<std::string>>> ConfigFields::Items(const std::string& key,
                                                                            int64_t count) {
  if (!Has(key)) return std::optional<std::vector<std::string>>();
  const json& value = *object_->Find(key);
  if (!value.is_array() || value.size() != static_cast<uint64_t>(count)) {
    return BadConfig(prefix_ + key, absl::StrCat("is no list of ", count, " items"));
  }
  std::vector<std::string> items;
  for (const json& item : value) items.push_back(Shown(item));
  return std::optional(std::move(items));
}

absl::StatusOr<std::optional<ConfigFields>> ConfigFields::Object(const std::string& key) {
  if (!Has(key)) return std::optional<ConfigFields>();
  if (!IsObject(key)) return BadConfig(prefix_ + key, "is no object");
  return std::optional(ConfigFields(std::make_shared<Json>(Json{*object_->Find(key)}),
                                    absl::StrCat(prefix_, key, ".")));
}

bool ConfigFields::IsObject(const std::string& key) {
  return Has(key) && object_->Find(key)->is_object();
}

bool ConfigFields::Equal(const std::string& key, const std::string& other) {
  if (!Has(key) || !Has(other)) return Has(key) == Has(other);
  return *object_->Find(key) == *object_->Find(other);
}

bool ConfigFields::Is(const std::string& key, absl::string_view text) {
  return Has(key) && *object_->Find(key) == FromText(text);
}

absl::Status ConfigFields::Only(const std::string& key, absl::string_view text) {
  return !Has(key) || Is(key, text) ? absl::OkStatus() : NotBuilt(key);
}

absl::Status ConfigFields::NotBuilt(const std::string& key) {
  read_.insert(key);
  return RefuseValue(prefix_ + key, Shown(*object_->Find(key)));
}

absl::Status ConfigFields::NotBuilt(const std::string& key, absl::string_view item) const {
  return RefuseValue(prefix_ + key, item);
}

absl::Status ConfigFields::RefuseUnknown(std::span<const absl::string_view> ignored) const {
  for (const auto& [key, value] : object_->object.items()) {
    if (read_.count(key) > 0) continue;
    if (std::find(ignored.begin(), ignored.end(), key) != ignored.end()) continue;
    return RefuseValue(absl::StrCat(prefix_, key.substr(0, limits::kNameBytesMax)), Shown(value));
  }
  return absl::OkStatus();
}

}  // namespace kvtier
