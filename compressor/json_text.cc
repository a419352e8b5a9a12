#include "compressor/json_text.h"

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "base/limits.h"

namespace kvtier {
namespace {

// Walks the text without building anything. Each handler returns false to stop.
class Checker final : public nlohmann::json_sax<nlohmann::json> {
 public:
  const std::string& fault() const { return fault_; }

  bool null() override { return Value(); }
  bool boolean(bool /*value*/) override { return Value(); }
  bool number_integer(number_integer_t /*value*/) override { return Value(); }
  bool number_unsigned(number_unsigned_t /*value*/) override { return Value(); }
  bool number_float(number_float_t /*value*/, const string_t& /*text*/) override { return Value(); }
  bool string(string_t& /*value*/) override { return Value(); }
  bool binary(binary_t& /*value*/) override { return Value(); }
  bool start_object(size_t /*elements*/) override { return Open(/*is_object=*/true); }
  bool start_array(size_t /*elements*/) override { return Value() && Open(/*is_object=*/false); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }
  bool key(string_t& name) override {
    if (keys_.back().insert(name).second) return true;
    return Fail(
        absl::StrCat("the key \"", name.substr(0, limits::kNameBytesMax), "\" is there twice"));
  }
  bool parse_error(size_t position, const std::string& /*last_token*/,
                   const nlohmann::json::exception& /*error*/) override {
    return Fail(absl::StrCat("not JSON at byte ", position));
  }

 private:
  bool Value() { return !keys_.empty() || Fail("not a JSON object"); }
  bool Open(bool /*is_object*/) {
    if (keys_.size() == limits::kJsonDepthMax) {
      return Fail(absl::StrCat("nested deeper than ", limits::kJsonDepthMax));
    }
    keys_.emplace_back();
    return true;
  }
  bool Close() {
    keys_.pop_back();
    return true;
  }
  bool Fail(std::string fault) {
    if (fault_.empty()) fault_ = std::move(fault);
    return false;
  }

  std::vector<absl::flat_hash_set<std::string>> keys_;  // One per open object or array.
  std::string fault_;
};

}  // namespace

absl::Status CheckJsonObject(absl::string_view text, absl::string_view what) {
  Checker checker;
  if (nlohmann::json::sax_parse(text.begin(), text.end(), &checker)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(what, ": ", checker.fault()));
}

}  // namespace kvtier
