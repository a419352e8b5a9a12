// kvtierctl as a script sees it, what it prints, where, and its exit status: its command line, and
// the commands compress and ask.
#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "tests/integration/ctl_fixture.h"
#include "tests/testing/files.h"

namespace kvtier {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

TEST_F(CtlTest, ExplainsItself) {
  const Outcome all = RunExactly({"--help"});
  EXPECT_EQ(all.exit_code, 0);
  EXPECT_THAT(all.err, IsEmpty());
  for (const char* command : {"compress", "ask", "ls", "stat", "reband", "fetch", "rm", "verify",
                              "models", "stats", "pin", "unpin", "ttl", "watch"}) {
    SCOPED_TRACE(command);
    EXPECT_THAT(all.out, HasSubstr(absl::StrCat("kvtierctl ", command)));
    const Outcome help = RunExactly({command, "--help"});
    EXPECT_EQ(help.exit_code, 0);
    EXPECT_THAT(help.out, AllOf(StartsWith(absl::StrCat("kvtierctl ", command)),
                                HasSubstr("--json"), HasSubstr("--timeout")));
  }
}

TEST_F(CtlTest, RefusesCommandLinesThatMakeNoSense) {
  const struct {
    std::vector<std::string> words;
    const char* message;
  } cases[] = {
      {{}, "Compress documents"},
      {{"frobnicate"}, "no command 'frobnicate'"},
      {{"ls", "--frobnicate"}, "--frobnicate is no flag"},
      {{"ls", "--ratio=0.3"}, "--ratio has no meaning here"},
      {{"ls", "stray"}, "unexpected argument 'stray'"},
      {{"ask", "--key", std::string(64, 'a')}, "one of --question, --token_ids, --questions"},
      {{"ask", "--question=x"}, "--key HEX"},
      {{"ask", "--question=x", "--key=12"}, "64"},
      {{"fetch", std::string(64, 'a')}, "--out"},
      {{"stat", "nonsense"}, "64"},
      {{"stat", std::string(64, 'a'), "--heads_at=0"}, "(0, 1]"},
      {{"reband", std::string(64, 'a')}, "one of --edges, --bytes, --rectangle"},
      {{"reband", std::string(64, 'a'), "--edges=0.1,1", "--bytes=9"}, "one of --edges"},
      {{"reband", std::string(64, 'a'), "--edges=0.3,0.2"}, "does not lie above"},
      {{"reband", std::string(64, 'a'), "--rectangle=2"}, "(0, 1]"},
      {{"reband", std::string(64, 'a'), "--rectangle=0.2", "--of=band"}, "layer or object"},
      {{"reband", std::string(64, 'a'), "--edges=1", "--out=x"}, "takes a rectangle"},
      {{"reband", std::string(64, 'a'), "--edges=1", "--of=layer"}, "--of shapes a rectangle"},
      {{"reband", std::string(64, 'a'), "--bytes=9", "--drop_rest"}, "goes with --edges"},
      {{"stat", "--timeout=soon"}, "--timeout=soon"},
      {{"rm", "--all", "--model=m"}, "not both"},
      {{"rm", "--all", "--keep_ratio=0.3"}, "for one object"},
      {{"rm", std::string(64, 'a'), "--dry_run"}, "--dry_run is for"},
      {{"pin"}, "--key HEX"},
      {{"ttl", std::string(64, 'a')}, "KEY 36h"},
      {{"ttl", std::string(64, 'a'), "soon"}, "'soon' is no time to live"},
      {{"ttl", std::string(64, 'a'), "0s"}, "'0s' is no time to live"},
      {{"watch", "--after=3"}, "--after needs --incarnation"},
      {{"ls", "--tenant=not one"}, "--tenant is 'not one'"},
      {{"ask", "--tenant=other"}, "--tenant has no meaning here"},
  };
  for (const auto& [words, message] : cases) {
    SCOPED_TRACE(testing::PrintToString(words));
    const Outcome outcome = RunExactly(words);
    EXPECT_EQ(outcome.exit_code, 2);
    EXPECT_THAT(outcome.out, IsEmpty());
    EXPECT_THAT(outcome.err, HasSubstr(message));
  }
}

TEST_F(CtlTest, NamesAServerThatDoesNotAnswer) {
  const Outcome outcome = RunExactly({"ls", "--store=127.0.0.1:1"});
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.err, HasSubstr("UNAVAILABLE"));
}

TEST_F(CtlTest, CompressesWithACodecThatIsPartOfTheKey) {
  StartStore();
  StartCompressor();
  StartWorker();
  const std::string raw = CompressText();
  std::set<std::string> keys{raw};
  for (const std::string codec : {"int8", "int4"}) {
    SCOPED_TRACE(codec);
    const Outcome made =
        Run("compress", {"--json", "--codec", codec, "--file", Write("text", kText)});
    ASSERT_EQ(made.exit_code, 0) << made.err;
    const std::string key = made.json().value("key", "");
    EXPECT_TRUE(keys.insert(key).second) << "another codec is another key";
    const Outcome stat = Run("stat", {"--json", key});
    ASSERT_EQ(stat.exit_code, 0) << stat.err;
    EXPECT_EQ(stat.json().value("recipe", ""), "kvzip/1;codec=" + codec);
    const Outcome asked = Run("ask", {"--key", key, "--ratio=0.3", "--question=red"});
    EXPECT_EQ(asked.exit_code, 0) << asked.err;
  }
  const Outcome unknown = Run("compress", {"--codec=int3", "--file", Write("text", kText)});
  EXPECT_EQ(unknown.exit_code, 2);
  EXPECT_THAT(unknown.err, AllOf(HasSubstr("int3"), HasSubstr("int4")));
}

TEST_F(CtlTest, CompressesTextAndIdsToOneKey) {
  StartStore();
  StartCompressor();
  const std::string text = Write("text", kText);
  const Outcome first = Run("compress", {"--file", text});
  ASSERT_EQ(first.exit_code, 0) << first.err;
  EXPECT_THAT(first.out, ContainsRegex("^key      [0-9a-f]+\ncontext  113 tokens"));
  EXPECT_THAT(first.out, ContainsRegex("\n *0.3 +[0-9]+ +[0-9.]+ % +-[0-9.]+ +host.disk\n"));
  // Plain lines, no bar: stderr is a file. A stage that is over quickly may not be seen.
  EXPECT_THAT(first.err, ContainsRegex("^queued [0-9]+/[0-9]+\n"));
  EXPECT_THAT(first.err, ContainsRegex("\n(prefill|scoring|packing|upload) [0-9]+/[0-9]+\n"));
  EXPECT_THAT(first.err, Not(HasSubstr("\r")));

  const Outcome second = Run("compress", {"--file", text});
  ASSERT_EQ(second.exit_code, 0) << second.err;
  EXPECT_THAT(second.out, HasSubstr("stored already"));
  EXPECT_EQ(second.out.substr(0, 80), first.out.substr(0, 80));

  nlohmann::json ids = nlohmann::json::array();
  std::string raw;
  for (const char c : absl::string_view(kText)) {
    ids.push_back(static_cast<uint8_t>(c));
    raw += std::string({c, '\0', '\0', '\0'});
  }
  const Outcome json = Run("compress", {"--json", "--token-ids", Write("ids.json", ids.dump())});
  ASSERT_EQ(json.exit_code, 0) << json.err;
  EXPECT_FALSE(json.json()["computed"]);
  EXPECT_EQ(json.json()["bands"].size(), 6);
  EXPECT_THAT(first.out, HasSubstr(json.json()["key"]));
  const Outcome u32 = Run("compress", {"--json", "--token_ids", Write("ids.u32", raw)});
  EXPECT_EQ(u32.json()["key"], json.json()["key"]);

  const Outcome system = Run("compress", {"--json", "--file", text, "--durability=host",
                                          "--system_ids", Write("system.json", "[1,2,3,4,5]")});
  ASSERT_EQ(system.exit_code, 0) << system.err;
  EXPECT_NE(system.json()["key"], json.json()["key"]);
  EXPECT_EQ(system.json()["system_tokens"], 5);
  EXPECT_EQ(system.json()["durability"], "host");
  EXPECT_TRUE(system.json()["computed"]);

  const Outcome uniform = Run("compress", {"--json", "--file", text, "--recipe=uniform"});
  ASSERT_EQ(uniform.exit_code, 0) << uniform.err;
  EXPECT_EQ(uniform.json()["recipe"], "uniform/1");
  EXPECT_NE(uniform.json()["key"], json.json()["key"]);
}

TEST_F(CtlTest, CompressesWhatIsToLiveForAWhile) {
  StartStore();
  StartCompressor();
  const std::string text = Write("text", kText);
  const Outcome refused = Run("compress", {"--file", text, "--ttl=-3s"});
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_THAT(refused.err, HasSubstr("a time to live of -3s"));
  EXPECT_EQ(Run("compress", {"--file", text, "--ttl=9000000h"}).exit_code, 2);
  const Outcome made = Run("compress", {"--json", "--file", text, "--ttl=36h"});
  ASSERT_EQ(made.exit_code, 0) << made.err;
  EXPECT_EQ(made.json().value("expires_unix_ms", int64_t{0}) -
                made.json().value("sealed_unix_ms", int64_t{0}),
            absl::ToInt64Milliseconds(absl::Hours(36)));
  // What is stored keeps what it has.
  EXPECT_FALSE(Run("compress", {"--json", "--file", text}).json().value("computed", true));
  EXPECT_GT(Run("ls", {"--json"}).json()[0].value("expires_unix_ms", int64_t{0}), 0);
}

TEST_F(CtlTest, RefusesContextsThatMakeNoSense) {
  StartStore();
  StartCompressor();
  const std::string text = Write("text", kText);
  const std::string bad_ids = Write("ids", "[1, 300]");
  const struct {
    std::vector<std::string> flags;
    int exit_code;
    std::vector<std::string> words;
  } cases[] = {
      {{}, 2, {"--file", "--token_ids"}},
      {{"--file", text, "--token_ids", bad_ids}, 2, {"either --file or --token_ids"}},
      {{"--file", dir_.File("missing")}, 2, {dir_.File("missing")}},
      {{"--file", Write("empty", "")}, 2, {"context is empty"}},
      {{"--file", Write("long", std::string(5000, 'x'))}, 2, {"longer than the limit of"}},
      {{"--token_ids", bad_ids}, 2, {"300"}},
      {{"--token_ids", Write("no_ids", "{}")}, 2, {"JSON array of token ids"}},
      {{"--file", text, "--model=llama"}, 3, {"unknown model 'llama'", "tiny"}},
      {{"--file", text, "--durability=tape"}, 2, {"'tape'", "host or disk"}},
      {{"--file", text, "--min_ratio=nan"}, 2, {"(0, 1]"}},
      {{"--file", text, "--recipe=magic"}, 2, {"magic", "kvpress"}},
      {{"--file", text, "--recipe=head"}, 2, {"no head scores"}},
  };
  for (const auto& [flags, exit_code, words] : cases) {
    SCOPED_TRACE(testing::PrintToString(flags));
    const Outcome outcome = Run("compress", flags);
    EXPECT_EQ(outcome.exit_code, exit_code);
    for (const std::string& word : words) EXPECT_THAT(outcome.err, HasSubstr(word));
  }
  EXPECT_EQ(StoredObjects(), 0);
}

TEST_F(CtlTest, RefusesTextForModelsWithoutAByteVocabulary) {
  model_ = MakeModel("wordy", {.vocabulary = 128});
  StartStore();
  StartCompressor();
  StartWorker();
  EXPECT_THAT(Run("models").out, HasSubstr("token ids only"));
  const Outcome compress = Run("compress", {"--file", Write("text", kText)});
  EXPECT_EQ(compress.exit_code, 2);
  EXPECT_THAT(compress.err, AllOf(HasSubstr("'wordy'"), HasSubstr("byte vocabulary"),
                                  HasSubstr("--token_ids FILE")));
  const std::string ids = Write("ids", "[1,2,3,4,5,6,7,8,9,10,11,12]");
  const Outcome stored = Run("compress", {"--json", "--token_ids", ids});
  ASSERT_EQ(stored.exit_code, 0) << stored.err;
  const std::string key = stored.json()["key"];
  const Outcome ask = Run("ask", {"--key", key, "--question=lamp"});
  EXPECT_EQ(ask.exit_code, 2);
  EXPECT_THAT(ask.err, AllOf(HasSubstr("byte vocabulary"), HasSubstr("--token_ids FILE")));
  const Outcome answer = Run("ask", {"--key", key, "--token_ids", ids, "--answer_tokens=3"});
  EXPECT_EQ(answer.exit_code, 0) << answer.err;
  EXPECT_THAT(answer.out, ContainsRegex("^[0-9]+ [0-9]+ [0-9]+ \n$"));
}

TEST_F(CtlTest, AsksOneQuestion) {
  StartStore();
  StartCompressor();
  const std::string key = CompressText();
  StartWorker();
  const Outcome text = Run("ask", {"--key", key, "--question", "lamp =", "--answer_tokens=6"});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out, EndsWith("\n"));
  const Outcome json =
      Run("ask", {key, "--question", "lamp =", "--answer_tokens=6", "--ratio=0.3", "--json"});
  ASSERT_EQ(json.exit_code, 0) << json.err;
  const nlohmann::json answer = json.json();
  EXPECT_EQ(answer["ratio"], 0.3);
  EXPECT_EQ(answer["answer_ids"].size(), 6);
  EXPECT_GT(answer["fetch_ms"], 0);
  EXPECT_FALSE(answer["stopped"]);
  // The first byte of the answer as the stop: nothing is answered.
  const uint32_t first = answer["answer_ids"][0];
  if (first > 0 && first < 256) {
    const Outcome stopped = Run("ask", {key, "--question", "lamp =", "--ratio=0.3", "--json",
                                        "--stop", std::string(1, static_cast<char>(first))});
    EXPECT_TRUE(stopped.json()["stopped"]) << stopped.err;
    EXPECT_THAT(stopped.json()["answer_ids"], IsEmpty());
  }
  // Any id of the answer: it ends where that comes first.
  const uint32_t last = answer["answer_ids"][5];
  const Ids ids = answer["answer_ids"];
  uint32_t other = 0;  // Not in the answer.
  while (std::ranges::find(ids, other) != ids.end()) ++other;
  nlohmann::json before = nlohmann::json::array();
  for (const nlohmann::json& id : answer["answer_ids"]) {
    if (id == last) break;
    before.push_back(id);
  }
  const Outcome stopped =
      Run("ask", {key, "--question", "lamp =", "--answer_tokens=6", "--ratio=0.3", "--json",
                  absl::StrCat("--stop_token_ids=", other, ",", last)});
  ASSERT_EQ(stopped.exit_code, 0) << stopped.err;
  EXPECT_TRUE(stopped.json()["stopped"]);
  EXPECT_EQ(stopped.json()["answer_ids"], before);
  EXPECT_EQ(Metric(*worker_, "kvtier_worker_attached_objects"), 0);  // Each ask detached.
}

TEST_F(CtlTest, AsksAFileOfQuestionsAndCountsExactAnswers) {
  StartStore();
  StartCompressor();
  const std::string key = CompressText();
  StartWorker();
  nlohmann::json file = {{"questions", nlohmann::json::array()}};
  for (const char* question : {"lamp =", "oil =", "The keeper", "ships:"}) {
    const Outcome one = Run("ask", {key, "--json", "--answer_tokens=5", "--question", question});
    ASSERT_EQ(one.exit_code, 0) << one.err;
    const Ids ids(question, question + std::string(question).size());
    file["questions"].push_back({{"question_ids", ids}, {"answer_ids", one.json()["answer_ids"]}});
  }
  file["questions"][3]["answer_ids"][0] =
      (file["questions"][3]["answer_ids"][0].get<uint32_t>() + 1) % 256;
  const std::string questions = Write("questions.json", file.dump());
  const Outcome text = Run("ask", {key, "--questions", questions});
  ASSERT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out, StartsWith("ratio 1: 3 of 4 answers exact, "));

  const std::string out = dir_.File("answers.json");
  const Outcome written = Run("ask", {key, "--questions", questions, "--parallel=4", "--out", out});
  ASSERT_EQ(written.exit_code, 0) << written.err;
  EXPECT_EQ(written.out.substr(0, 28), text.out.substr(0, 28));
  const nlohmann::json json = nlohmann::json::parse(ReadFile(out));
  EXPECT_EQ(json["exact"], 3);
  EXPECT_EQ(json["total"], 4);
  EXPECT_EQ(json["tokens"], 113);
  EXPECT_EQ(json["prefilled_context_tokens"], 0);
  EXPECT_EQ(json["answers"].size(), 4);
  EXPECT_FALSE(json["answers"][3]["exact"]);
  EXPECT_EQ(Run("ask", {key, "--questions", questions, "--json"}).json()["answers"],
            json["answers"]);
}

TEST_F(CtlTest, RefusesQuestionsThatMakeNoSense) {
  StartStore();
  StartCompressor();
  const std::string key = CompressText();
  StartWorker({"--tail_tokens_max=50"});
  const std::string unknown(64, 'a');
  const struct {
    std::vector<std::string> flags;
    int exit_code;
    const char* message;
  } cases[] = {
      {{key, "--question=x", "--ratio=0"}, 2, "(0, 1]"},
      {{key, "--question=x", "--ratio=1.5"}, 2, "(0, 1]"},
      {{key, "--question=x", "--ratio=nan"}, 2, "(0, 1]"},
      {{key, "--question=x", "--answer_tokens=100"}, 1, "limit of 50"},
      {{key, "--question=x", "--stop=ab"}, 2, "one byte"},
      {{key, "--question=x", "--stop_token_ids=1,264"}, 2, "--stop_token_ids: '264'"},
      {{key, "--questions", Write("list", "[]")}, 2, "'questions'"},
      {{key, "--questions", Write("half", R"({"questions":[{"question_ids":[1]}]})")},
       2,
       "'answer_ids'"},
      {{unknown, "--question=x"}, 3, "not found"},
  };
  for (const auto& [flags, exit_code, message] : cases) {
    SCOPED_TRACE(testing::PrintToString(flags));
    const Outcome outcome = Run("ask", flags);
    EXPECT_EQ(outcome.exit_code, exit_code);
    EXPECT_THAT(outcome.err, HasSubstr(message));
  }
}

}  // namespace
}  // namespace kvtier
