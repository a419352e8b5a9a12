#include "services/command_line.h"

#include <algorithm>
#include <optional>

#include "absl/flags/commandlineflag.h"
#include "absl/flags/reflection.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/status_macros.h"

namespace kvtier {
namespace {

constexpr size_t kHelpColumns = 96;

// One flag of a command line, taken apart.
struct Word {
  absl::CommandLineFlag* flag = nullptr;
  std::string name;
  std::optional<std::string> value;
  bool negated = false;  // --noname
};

absl::StatusOr<Word> TakeApart(absl::string_view text, const std::vector<std::string>& allowed) {
  Word word;
  const std::vector<std::string> parts = absl::StrSplit(text, absl::MaxSplits('=', 1));
  word.name = absl::StrReplaceAll(parts[0], {{"-", "_"}});
  if (parts.size() == 2) word.value = parts[1];
  const auto is_allowed = [&allowed](const std::string& name) {
    return std::find(allowed.begin(), allowed.end(), name) != allowed.end();
  };
  if (is_allowed(word.name)) {
    word.flag = absl::FindCommandLineFlag(word.name);
    return word;
  }
  if (absl::StartsWith(word.name, "no") && is_allowed(word.name.substr(2))) {
    word.flag = absl::FindCommandLineFlag(word.name.substr(2));
    word.negated = true;
    if (word.flag->IsOfType<bool>() && !word.value.has_value()) return word;
  }
  const bool known = absl::FindCommandLineFlag(word.name) != nullptr;
  return absl::InvalidArgumentError(
      absl::StrCat("--", parts[0], known ? " has no meaning here" : " is no flag"));
}

// `text` in lines of at most kHelpColumns, each behind `indent` spaces.
std::string Wrap(absl::string_view text, size_t indent) {
  std::string lines;
  std::string line;
  for (const absl::string_view word : absl::StrSplit(text, ' ', absl::SkipEmpty())) {
    if (!line.empty() && indent + line.size() + 1 + word.size() > kHelpColumns) {
      absl::StrAppend(&lines, std::string(indent, ' '), line, "\n");
      line.clear();
    }
    absl::StrAppend(&line, line.empty() ? "" : " ", word);
  }
  return absl::StrCat(lines, std::string(indent, ' '), line, "\n");
}

}  // namespace

absl::StatusOr<CommandLine> ParseFlags(std::span<const char* const> words,
                                       const std::vector<std::string>& allowed) {
  CommandLine line;
  for (size_t i = 0; i < words.size(); ++i) {
    absl::string_view text = words[i];
    if (text == "--") {
      line.arguments.insert(line.arguments.end(), words.begin() + i + 1, words.end());
      break;
    }
    if (text == "-h" || text == "--help") {
      line.help = true;
      return line;
    }
    if (!absl::ConsumePrefix(&text, "--")) {
      if (text.size() > 1 && text[0] == '-') {
        return absl::InvalidArgumentError(absl::StrCat("flags begin with --, not as ", text));
      }
      line.arguments.emplace_back(text);
      continue;
    }
    KVTIER_ASSIGN_OR_RETURN(Word word, TakeApart(text, allowed));
    if (!word.value.has_value()) {
      if (word.flag->IsOfType<bool>()) {
        word.value = word.negated ? "false" : "true";
      } else if (i + 1 < words.size()) {
        word.value = words[++i];
      } else {
        return absl::InvalidArgumentError(absl::StrCat("--", word.name, " needs a value"));
      }
    }
    std::string error;
    if (!word.flag->ParseFrom(*word.value, &error)) {
      return absl::InvalidArgumentError(absl::StrCat("--", word.name, "=", *word.value, ": ",
                                                     error.empty() ? "not understood" : error));
    }
  }
  return line;
}

std::vector<std::string> FlagsDefinedIn(absl::string_view folder, absl::string_view but_not) {
  std::vector<std::string> names;
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    const std::string file = flag->Filename();
    if (absl::StrContains(file, folder) && !absl::StrContains(file, but_not)) {
      names.emplace_back(name);
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string FormatFlags(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) {
    const absl::CommandLineFlag* flag = absl::FindCommandLineFlag(name);
    const std::string standard = flag->CurrentValue();
    const bool is_switch = flag->IsOfType<bool>() && standard == "false";
    absl::StrAppend(&text, "  --", name,
                    is_switch || standard.empty() ? "" : absl::StrCat("=", standard), "\n",
                    Wrap(flag->Help(), 6));
  }
  return text;
}

}  // namespace kvtier
