#include "bench/quality/tasks.h"

#include <algorithm>
#include <set>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/questions.h"

namespace kvtier {
namespace {

// Fisher and Yates; std::shuffle differs between standard libraries.
template <typename T>
void Shuffle(std::vector<T>& items, std::mt19937_64& random) {
  for (size_t left = items.size(); left > 1; --left) {
    std::swap(items[left - 1], items[random() % left]);
  }
}

// Made-up words of three syllables, never the same twice.
class Words {
 public:
  explicit Words(std::mt19937_64& random) : random_(&random) {}
  std::string Next() {
    constexpr absl::string_view kConsonants = "bdfgklmnprstvz";
    constexpr absl::string_view kVowels = "aeiou";
    for (;;) {
      std::string word;
      for (int syllable = 0; syllable < 3; ++syllable) {
        word += kConsonants[(*random_)() % kConsonants.size()];
        word += kVowels[(*random_)() % kVowels.size()];
      }
      if (used_.insert(word).second) return word;
    }
  }
  // Two words, "tamiro-velusa": unlike any other even where the model looks at few bytes.
  std::string NextPair() {
    std::string pair = Next();
    absl::StrAppend(&pair, "-", Next());
    return pair;
  }

 private:
  std::mt19937_64* random_;
  std::set<std::string> used_;
};

double DepthOf(const std::string& text, const std::string& question) {
  return static_cast<double>(text.find(question) + question.size()) /
         static_cast<double>(text.size());
}

Sample OneHop(const std::string& text, std::string question, std::string answer) {
  Sample sample;
  sample.depth = DepthOf(text, question);
  sample.hops.push_back({std::move(question), std::move(answer)});
  return sample;
}

// "tamiro-velusa = 5d01fe" on lines of their own; asked for some of the keys.
absl::StatusOr<TaskDocument> MakeKeyValue(const TextSource&, size_t bytes, uint32_t samples,
                                          std::mt19937_64& random) {
  Words words(random);
  TaskDocument document;
  std::vector<Hop> pairs;
  while (document.text.size() < bytes) {
    Hop pair;
    pair.question = absl::StrCat(words.NextPair(), " = ");
    pair.answer = absl::StrFormat("%06x", random() & 0xffffff);
    absl::StrAppend(&document.text, pair.question, pair.answer, "\n");
    pairs.push_back(std::move(pair));
  }
  Shuffle(pairs, random);
  for (size_t i = 0; i < std::min<size_t>(samples, pairs.size()); ++i) {
    document.samples.push_back(OneHop(document.text, pairs[i].question, pairs[i].answer));
  }
  return document;
}

// Real text; a snippet that occurs once is continued for `answer_bytes`.
absl::StatusOr<TaskDocument> MakeContinuation(const TextSource& source, size_t bytes,
                                              uint32_t samples, size_t answer_bytes,
                                              std::mt19937_64& random) {
  constexpr int kCutsMax = 1000;
  for (int cut = 0; cut < kCutsMax; ++cut) {
    TaskDocument document;
    document.text = source.Cut(bytes, random);
    std::vector<Question> snippets = FindSuffixQuestions(document.text);
    Shuffle(snippets, random);
    for (const Question& snippet : snippets) {
      if (document.samples.size() == samples) break;
      const size_t at = document.text.find(snippet.question) + kSuffixSnippetBytes;
      if (at + answer_bytes > document.text.size()) continue;
      document.samples.push_back(
          OneHop(document.text, snippet.question, document.text.substr(at, answer_bytes)));
    }
    // A cut of nothing but equal lines has too few: take another one.
    if (document.samples.size() == samples) return document;
  }
  return absl::InvalidArgumentError(absl::StrCat("in ", kCutsMax, " cuts of ", bytes,
                                                 " bytes from ", source.files(), " files none has ",
                                                 samples, " snippets that occur once"));
}

absl::StatusOr<TaskDocument> MakePrefixSuffix(const TextSource& source, size_t bytes,
                                              uint32_t samples, std::mt19937_64& random) {
  return MakeContinuation(source, bytes, samples, kSuffixAnswerBytes, random);
}

absl::StatusOr<TaskDocument> MakeRepeat(const TextSource& source, size_t bytes, uint32_t samples,
                                        std::mt19937_64& random) {
  constexpr size_t kRepeatBytes = 48;
  return MakeContinuation(source, bytes, samples, kRepeatBytes, random);
}

// Real text with "The code of tamiro is 4821." at evenly spread depths, between two words.
absl::StatusOr<TaskDocument> MakeNeedle(const TextSource& source, size_t bytes, uint32_t samples,
                                        std::mt19937_64& random) {
  Words words(random);
  std::vector<Hop> needles(samples);
  size_t needle_bytes = 0;
  for (Hop& needle : needles) {
    needle.question = absl::StrCat("The code of ", words.Next(), " is ");
    needle.answer = absl::StrFormat("%04d", random() % 10'000);
    needle_bytes += needle.question.size() + needle.answer.size() + 2;
  }
  const std::string hay = source.Cut(bytes - std::min(needle_bytes, bytes / 2), random);
  TaskDocument document;
  size_t copied = 0;
  for (uint32_t i = 0; i < samples; ++i) {
    // The next break at or after this needle's share of the text.
    const size_t place = std::min(hay.find_first_of(" \n", hay.size() * i / samples), hay.size());
    const size_t end = std::max(std::min(place + 1, hay.size()), copied);
    absl::StrAppend(&document.text, hay.substr(copied, end - copied), needles[i].question,
                    needles[i].answer, ". ");
    copied = end;
  }
  absl::StrAppend(&document.text, hay.substr(copied));
  for (Hop& needle : needles) {
    document.samples.push_back(
        OneHop(document.text, std::move(needle.question), std::move(needle.answer)));
  }
  return document;
}

// Chains of three assignments, "tamiro-bude = velusa-kino", "velusa-kino = gonika-rapo",
// "gonika-rapo = 48213" (with words of three syllables), all lines shuffled; asked hop by hop from
// the first name to the number.
absl::StatusOr<TaskDocument> MakeMultiHop(const TextSource&, size_t bytes, uint32_t samples,
                                          std::mt19937_64& random) {
  constexpr int kHops = 3;
  Words words(random);
  std::vector<std::vector<Hop>> chains;
  std::vector<std::string> lines;
  for (size_t size = 0; size < bytes;) {
    std::vector<Hop> chain;
    std::string name = words.NextPair();
    for (int hop = 0; hop < kHops; ++hop) {
      std::string value =
          hop + 1 < kHops ? words.NextPair() : absl::StrCat(10'000 + random() % 90'000);
      lines.push_back(absl::StrCat(name, " = ", value, "\n"));
      size += lines.back().size();
      chain.push_back({absl::StrCat(name, " = "), value});
      name = std::move(value);
    }
    chains.push_back(std::move(chain));
  }
  Shuffle(lines, random);
  TaskDocument document;
  for (const std::string& line : lines) document.text += line;
  for (size_t i = 0; i < std::min<size_t>(samples, chains.size()); ++i) {
    Sample sample;
    sample.depth = DepthOf(document.text, chains[i][0].question);
    sample.hops = chains[i];
    document.samples.push_back(std::move(sample));
  }
  return document;
}

// A few facts, "The tamiro is velusa.", each stated many times in shuffled order.
absl::StatusOr<TaskDocument> MakeRedundant(const TextSource&, size_t bytes, uint32_t samples,
                                           std::mt19937_64& random) {
  Words words(random);
  std::vector<Hop> facts(samples);
  for (Hop& fact : facts) {
    fact.question = absl::StrCat("The ", words.Next(), " is ");
    fact.answer = words.Next();
  }
  std::vector<std::string> lines;
  for (size_t size = 0; size < bytes; size += lines.back().size()) {
    const Hop& fact = facts[lines.size() % facts.size()];
    lines.push_back(absl::StrCat(fact.question, fact.answer, ".\n"));
  }
  Shuffle(lines, random);
  TaskDocument document;
  for (const std::string& line : lines) document.text += line;
  for (Hop& fact : facts) {
    document.samples.push_back(
        OneHop(document.text, std::move(fact.question), std::move(fact.answer)));
  }
  return document;
}

constexpr Task kTasks[] = {
    {"key_value", "Key-value retrieval", false, false, 25, MakeKeyValue},
    {"prefix_suffix", "Prefix to suffix (real text)", true, false, 25, MakePrefixSuffix},
    {"needle", "Needles in real text", true, false, 12, MakeNeedle},
    {"multi_hop", "Multi-hop tracing", false, false, 10, MakeMultiHop},
    {"repeat", "Verbatim repeat (real text)", true, false, 20, MakeRepeat},
    {"redundant", "Redundant facts", false, true, 10, MakeRedundant},
};

}  // namespace

std::span<const Task> AllTasks() { return kTasks; }

absl::StatusOr<TaskDocument> MakeTaskDocument(const Task& task, const TextSource& source,
                                              size_t bytes, uint64_t seed, uint32_t index) {
  if (bytes < kTaskBytesMin) {
    return absl::InvalidArgumentError(
        absl::StrCat("documents of ", bytes, " bytes, at least ", kTaskBytesMin));
  }
  // Tasks differ by their names, so that adding one changes no other's documents.
  std::seed_seq seeds{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), index};
  uint32_t words[2];
  seeds.generate(words, words + 2);
  uint64_t mixed = uint64_t{words[0]} << 32 | words[1];
  for (const char* c = task.name; *c != '\0'; ++c) mixed = mixed * 1'099'511'628'211u + *c;
  std::mt19937_64 random(mixed);
  return task.make(source, bytes, task.samples, random);
}

}  // namespace kvtier
