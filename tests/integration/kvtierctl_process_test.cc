// kvtierctl as a script sees it: what it prints, where, and its exit status.
#include <signal.h>

#include <filesystem>
#include <system_error>

#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "compressor/safetensors.h"
#include "services/client.h"
#include "tests/integration/pipeline_fixture.h"
#include "tests/testing/files.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

constexpr char kText[] =
    "The keeper of the lighthouse counts the ships: nine from the north, two from the south.\n"
    "lamp = brass\noil = whale\n";

class CtlTest : public PipelineTest {
 protected:
  struct Outcome {
    int exit_code = -1;
    std::string out;
    std::string err;
    nlohmann::json json() const {
      return nlohmann::json::parse(out, nullptr, /*allow_exceptions=*/false);
    }
  };

  // Runs kvtierctl; servers that were started are named by flags if the subcommand takes them.
  Outcome Run(const std::string& command, std::vector<std::string> flags = {}) {
    const auto takes = [&command](absl::string_view commands) {
      return absl::StrContains(commands, absl::StrCat(" ", command, " "));
    };
    if (store_ != nullptr && takes(" ls stat reband fetch rm verify stats pin unpin ttl watch ")) {
      flags.push_back("--store=" + store_->address());
    }
    if (compressor_ != nullptr && takes(" compress models ")) {
      flags.push_back("--compressor=" + compressor_->address());
    }
    if (worker_ != nullptr && takes(" ask ")) flags.push_back("--worker=" + worker_->address());
    flags.insert(flags.begin(), command);
    return RunExactly(flags);
  }
  Outcome RunExactly(const std::vector<std::string>& words) { return Finish(*Begin("", words)); }

  // Starts kvtierctl. What it prints is in files whose names begin with `name`.
  std::unique_ptr<ChildProcess> Begin(const std::string& name,
                                      const std::vector<std::string>& words) {
    // The shell parts stdout from stderr.
    std::vector<std::string> args = {"-c",
                                     absl::StrCat("exec \"$0\" \"$@\" > ", dir_.File(name + "out"),
                                                  " 2> ", dir_.File(name + "err")),
                                     absl::StrCat(KVTIER_BIN_DIR, "/kvtierctl")};
    args.insert(args.end(), words.begin(), words.end());
    auto process = ChildProcess::Start("/bin/sh", args);
    KVTIER_CHECK_OK(process);
    return *std::move(process);
  }
  Outcome Finish(ChildProcess& process, const std::string& name = "") {
    const absl::StatusOr<ExitStatus> exit = process.Wait(absl::Seconds(100));
    KVTIER_CHECK_OK(exit);
    return {exit->exit_code, ReadFile(dir_.File(name + "out")), ReadFile(dir_.File(name + "err"))};
  }
  // The first `count` lines that a running one has printed, as soon as they are there; fewer if it
  // ends before or takes more than 100 s.
  std::vector<std::string> AwaitLines(ChildProcess& process, const std::string& name,
                                      size_t count) {
    const absl::Time late = absl::Now() + absl::Seconds(100);
    while (true) {
      // Before the file: what it printed last is seen.
      const bool running = !process.Wait(absl::Milliseconds(20)).ok();
      std::error_code missing;
      const std::string file = dir_.File(name + "out");
      std::vector<std::string> lines;
      if (std::filesystem::exists(file, missing)) lines = absl::StrSplit(ReadFile(file), '\n');
      if (!lines.empty()) lines.pop_back();  // After the last end of a line: cut off, or empty.
      if (lines.size() >= count || !running || absl::Now() >= late) return lines;
    }
  }

  std::string Write(const std::string& name, absl::string_view bytes) {
    WriteFile(dir_.File(name), bytes);
    return dir_.File(name);
  }

  // Compresses kText; its key.
  std::string CompressText() {
    const Outcome outcome = Run("compress", {"--json", "--file", Write("text", kText)});
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    return outcome.json().value("key", "");
  }
};

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

TEST_F(CtlTest, ShowsWhatAStoreAndACompressorHave) {
  StartStore();
  StartCompressor();
  EXPECT_EQ(Run("ls", {"--json"}).json(), nlohmann::json::array());
  const std::string key = CompressText();
  ASSERT_EQ(key.size(), 64);

  EXPECT_THAT(Run("ls").out, ContainsRegex(absl::StrCat(key, " +tiny +113 +1 ")));
  const nlohmann::json list = Run("ls", {"--json"}).json();
  ASSERT_EQ(list.size(), 1);
  EXPECT_EQ(list[0]["key"], key);
  EXPECT_THAT(Run("stat", {"--key", key}).out,
              AllOf(HasSubstr(key), HasSubstr("113 tokens (+ 3 protected)"),
                    HasSubstr("crash and restart"), HasSubstr("host+disk")));

  const nlohmann::json models = Run("models", {"--json"}).json();
  ASSERT_EQ(models.size(), 1);
  EXPECT_EQ(models[0]["name"], "tiny");
  EXPECT_EQ(models[0]["vocabulary"], 264);
  EXPECT_TRUE(models[0]["byte_vocabulary"]);
  EXPECT_THAT(Run("models").out, ContainsRegex("tiny +2 +2 +32 +4096 .* bf16  bytes"));

  const nlohmann::json stats = Run("stats", {"--json"}).json();
  EXPECT_EQ(stats["objects"], 1);
  EXPECT_GT(stats["host_bytes"], 0);
  EXPECT_GE(stats["disk_bytes"], stats["host_bytes"]);
  EXPECT_GT(stats["frame_bytes_max"], 0);
  EXPECT_THAT(Run("stats").out, AllOf(StartsWith("1 objects\n"), HasSubstr("disk")));
}

TEST_F(CtlTest, StatDescribesBandsAndHeads) {
  StartStore();
  StartCompressor();
  const std::string key = CompressText();
  const nlohmann::json listed = Run("ls", {"--json"}).json()[0];
  const std::string picture = dir_.File("object.svg");
  const Outcome outcome = Run("stat", {key, "--json", "--plot", picture});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const nlohmann::json stat = outcome.json();
  for (const auto& [field, value] : listed.items()) {
    if (field == "bands") continue;
    EXPECT_EQ(stat.value(field, nlohmann::json()), value) << field;
  }
  ASSERT_EQ(stat["bands"].size(), 6);
  double mass = 0;
  for (size_t b = 0; b < 6; ++b) {
    const nlohmann::json& band = stat["bands"][b];
    EXPECT_EQ(band["ratio"], listed["bands"][b]["ratio"]);
    mass += band["score_mass_share"].get<double>();
    EXPECT_NEAR(band["score_mass_up_to_here"], mass, 1e-12);
    // 2 layers x 2 heads, 113 tokens.
    EXPECT_EQ(band["rows_up_to_here"], static_cast<int>(band["ratio"].get<double>() * 452 + 1e-6));
    EXPECT_EQ(band["kept"].size(), 2);
    EXPECT_EQ(band["kept"][0].size(), 2);
  }
  EXPECT_NEAR(mass, 1, 1e-12);
  EXPECT_EQ(stat["bands"][5]["kept"], nlohmann::json({{1, 1}, {1, 1}}));
  EXPECT_EQ(stat["scored_layers"], nlohmann::json({0, 1}));
  EXPECT_FALSE(stat.contains("fidelity"));
  EXPECT_THAT(ReadFile(picture),
              AllOf(StartsWith("<svg "), EndsWith("</svg>\n"), HasSubstr(key.substr(0, 12))));
  const Outcome text = Run("stat", {key, "--heads_at=0.25"});
  EXPECT_THAT(text.out, AllOf(HasSubstr("score mass"), HasSubstr("at ratio 0.3, of 4\n")));
}

TEST_F(CtlTest, MeasuresFidelityWhenAsked) {
  StartStore();
  StartCompressor();
  const Outcome measured =
      Run("compress", {"--json", "--file", Write("text", kText), "--fidelity=1"});
  ASSERT_EQ(measured.exit_code, 0) << measured.err;
  EXPECT_GT(measured.json()["measuring_seconds"], 0);
  const std::string key = measured.json()["key"];
  const nlohmann::json stat = Run("stat", {key, "--json"}).json();
  EXPECT_EQ(stat["fidelity"]["chunks"], 1);
  EXPECT_EQ(stat["fidelity"]["tokens"], 49);  // The second chunk of 64 and 49.
  for (const nlohmann::json& band : stat["bands"]) {
    EXPECT_GE(band["accuracy"], 0);
    EXPECT_LE(band["accuracy"], 1);
  }
  EXPECT_THAT(Run("stat", {key}).out,
              AllOf(HasSubstr("measured on 49 tokens of 1 chunks"), HasSubstr("repeats")));
  // What is stored already is not measured anew.
  const Outcome again_measured =
      Run("compress", {"--json", "--file", dir_.File("text"), "--fidelity=2"});
  EXPECT_FALSE(again_measured.json()["computed"]);
  EXPECT_EQ(Run("stat", {key, "--json"}).json()["fidelity"]["chunks"], 1);
  // It survives re-banding where the edge stays.
  ASSERT_EQ(Run("reband", {key, "--edges=0.2,0.25,1"}).exit_code, 0);
  const nlohmann::json again = Run("stat", {key, "--json"}).json();
  EXPECT_EQ(again["bands"][0]["accuracy"], stat["bands"][1]["accuracy"]);
  EXPECT_FALSE(again["bands"][1].contains("accuracy"));
  EXPECT_EQ(again["bands"][2]["accuracy"], stat["bands"][5]["accuracy"]);
}

TEST_F(CtlTest, RebandsAStoredObject) {
  StartStore();
  StartCompressor();
  StartWorker();
  const std::string key = CompressText();
  const auto upload = [&] {
    return Run("stat", {key, "--json"}).json().value("upload_id", std::string());
  };
  const auto answer = [&](const char* ratio) {
    return Run("ask", {"--key", key, "--ratio", ratio, "--question=lamp = ", "--answer_tokens=8",
                       "--json"})
        .json()["answer_ids"];
  };
  const std::string first = upload();
  const nlohmann::json at_03 = answer("0.3");

  const Outcome dry = Run("reband", {key, "--edges=0.05,0.3,0.5,1", "--dry_run", "--json"});
  ASSERT_EQ(dry.exit_code, 0) << dry.err;
  EXPECT_FALSE(dry.json()["stored"]);
  EXPECT_FALSE(dry.json().contains("upload_id"));
  EXPECT_EQ(upload(), first);

  const Outcome done = Run("reband", {key, "--edges=0.05,0.3,0.5,1", "--json"});
  ASSERT_EQ(done.exit_code, 0) << done.err;
  EXPECT_EQ(done.json()["key"], key);
  EXPECT_EQ(done.json()["bands"], dry.json()["bands"]);
  EXPECT_TRUE(done.json()["stored"]);
  EXPECT_EQ(done.json()["upload_id"], upload());
  EXPECT_NE(upload(), first);
  const nlohmann::json stat = Run("stat", {key, "--json"}).json();
  ASSERT_EQ(stat["bands"].size(), 4);
  for (size_t b = 0; b < 4; ++b) {
    EXPECT_EQ(stat["bands"][b]["bytes"], done.json()["bands"][b]["bytes"]);
  }
  EXPECT_EQ(stat["durability"], "disk");
  EXPECT_EQ(Run("verify", {key}).exit_code, 0);
  EXPECT_EQ(answer("0.3"), at_03);  // A stored edge: the same pairs.
  EXPECT_EQ(StoredObjects(), 1);

  // A budget: half of what all takes.
  const uint64_t all = done.json()["bands"][3]["bytes_up_to_here"];
  const Outcome budget = Run("reband", {key, absl::StrCat("--bytes=", all / 2), "--json"});
  ASSERT_EQ(budget.exit_code, 0) << budget.err;
  EXPECT_LE(budget.json()["bands"][0]["bytes"], all / 2);
  EXPECT_GT(budget.json()["bands"][0]["bytes"], all / 3);
  EXPECT_THAT(Run("reband", {key, "--bytes=100"}).err, HasSubstr("the budget is 100"));

  // It survives what the object it replaced survived.
  store_.reset();
  StartStore();
  EXPECT_EQ(upload(), budget.json()["upload_id"]);
  EXPECT_EQ(Run("verify", {key}).exit_code, 0);
}

TEST_F(CtlTest, CutsRectangles) {
  StartStore();
  StartCompressor();
  StartWorker();
  const std::string key = CompressText();
  const Outcome done = Run("reband", {key, "--rectangle=0.3", "--of=object", "--json"});
  ASSERT_EQ(done.exit_code, 0) << done.err;
  EXPECT_EQ(done.json()["recipe"], "kvzip/1;rect=object");
  const std::string rectangle = done.json()["key"];
  EXPECT_NE(rectangle, key);
  EXPECT_EQ(StoredObjects(), 2);  // What it was cut from is still there.
  EXPECT_EQ(Run("stat", {rectangle, "--json"}).json()["bands"][0]["rows_up_to_here"], 4 * 33);
  EXPECT_EQ(Run("ask", {"--key", rectangle, "--ratio=0.3", "--question=lamp", "--json"}).exit_code,
            0);

  const std::string file = dir_.File("rectangle.safetensors");
  const Outcome written = Run("reband", {key, "--rectangle=0.3", "--out", file, "--json"});
  ASSERT_EQ(written.exit_code, 0) << written.err;
  EXPECT_FALSE(written.json()["stored"]);
  EXPECT_FALSE(written.json().contains("upload_id"));
  EXPECT_EQ(StoredObjects(), 2);
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto tensors, SafetensorsFile::Open(file));
  EXPECT_EQ(tensors->metadata().at("recipe"), "kvzip/1;rect=layer");
  EXPECT_EQ(tensors->metadata().at("logical_length"), "116");
  const std::vector<int64_t> first = tensors->entries().at("layers.0.keys").shape;
  const std::vector<int64_t> second = tensors->entries().at("layers.1.values").shape;
  EXPECT_EQ(first[0], 2);
  EXPECT_EQ(first[2], 32);
  // 3 protected rows in each layer, and 67 slabs of the 226.
  EXPECT_EQ(first[1] + second[1], 3 + 3 + 67);
}

TEST_F(CtlTest, SaysWhichRectangleTheStoreHas) {
  StartStore();
  StartCompressor();
  const std::string key = CompressText();
  const auto cut = [&](const char* ratio) {
    return Run("reband", {key, absl::StrCat("--rectangle=", ratio), "--json"});
  };
  const Outcome small = cut("0.3");
  ASSERT_EQ(small.exit_code, 0) << small.err;
  const std::string rectangle = small.json()["key"];
  const auto stored = [&] { return Run("stat", {rectangle, "--json"}).json(); };
  EXPECT_EQ(stored()["upload_id"], small.json()["upload_id"]);

  const Outcome large = cut("0.5");  // The same key: it takes the place of the smaller one.
  ASSERT_EQ(large.exit_code, 0) << large.err;
  EXPECT_EQ(large.json()["key"], rectangle);
  EXPECT_TRUE(large.json()["stored"]);
  const std::string kept = large.json()["upload_id"];
  EXPECT_EQ(stored()["upload_id"], kept);
  EXPECT_EQ(stored()["bands"][0]["ratio"], 0.5);

  const Outcome refused = cut("0.3");
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.err, AllOf(HasSubstr("ALREADY_EXISTS"), HasSubstr(kept)));
  EXPECT_FALSE(refused.json()["stored"]);
  EXPECT_FALSE(refused.json().contains("upload_id"));
  EXPECT_EQ(refused.json()["kept_upload_id"], kept);
  EXPECT_EQ(stored()["upload_id"], kept);
  const Outcome text = Run("reband", {key, "--rectangle=0.3"});
  EXPECT_EQ(text.exit_code, 1);
  EXPECT_THAT(text.out, AllOf(HasSubstr("nothing stored"), ContainsRegex("\n *0.5 ")));
  EXPECT_THAT(text.out, Not(ContainsRegex("\n *0.3 ")));

  // One object for both ratios: then the smaller one is there already.
  const Outcome both = Run("reband", {rectangle, "--edges=0.3,0.5", "--json"});
  ASSERT_EQ(both.exit_code, 0) << both.err;
  const Outcome there = cut("0.3");
  EXPECT_EQ(there.exit_code, 0) << there.err;
  EXPECT_FALSE(there.json()["stored"]);
  EXPECT_EQ(there.json()["kept_upload_id"], both.json()["upload_id"]);
  EXPECT_EQ(stored()["bands"][0]["bytes"], small.json()["bands"][0]["bytes"]);
}

TEST_F(CtlTest, DropsBandsByRebandingOnlyWhenToldTo) {
  StartStore();
  StartCompressor();
  const std::string key = CompressText();
  const auto stat = [&] { return Run("stat", {key, "--json"}).json(); };
  const nlohmann::json before = stat();
  const Outcome refused = Run("reband", {key, "--edges=0.1,0.3"});
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_THAT(refused.err, AllOf(HasSubstr("the edges end at 0.3, the bands that are here at 1"),
                                 HasSubstr("--drop_rest")));
  EXPECT_EQ(stat()["upload_id"], before["upload_id"]);
  EXPECT_EQ(stat()["resident_bands"], before["resident_bands"]);

  const Outcome dropped = Run("reband", {key, "--edges=0.1,0.3", "--drop_rest", "--json"});
  ASSERT_EQ(dropped.exit_code, 0) << dropped.err;
  EXPECT_EQ(stat()["upload_id"], dropped.json()["upload_id"]);
  EXPECT_EQ(stat()["bands"].size(), 2);
  EXPECT_EQ(stat()["bands"][1]["ratio"], 0.3);
  // All of what is left: nothing is dropped any more.
  EXPECT_EQ(Run("reband", {key, "--edges=0.2,0.3"}).exit_code, 0);
}

TEST_F(CtlTest, RebandsWhatIsLeftOfAnObject) {
  StartStore();
  StartCompressor();
  const std::string key = CompressText();
  ASSERT_EQ(Run("rm", {key, "--keep_ratio=0.3"}).exit_code, 0);
  const Outcome beyond = Run("reband", {key, "--edges=0.1,1"});
  EXPECT_EQ(beyond.exit_code, 2);
  EXPECT_THAT(beyond.err, HasSubstr("the bands that are here at 0.3"));
  const Outcome part = Run("reband", {key, "--edges=0.15,0.3", "--json"});
  ASSERT_EQ(part.exit_code, 0) << part.err;
  const nlohmann::json stat = Run("stat", {key, "--json"}).json();
  EXPECT_EQ(stat["bands"].size(), 2);
  EXPECT_EQ(stat["resident_bands"], 2);
  EXPECT_EQ(Run("verify", {key}).exit_code, 0);
  // Compressing again brings back what is not there.
  EXPECT_THAT(Run("compress", {"--file", dir_.File("text"), "--min_ratio=0.3"}).out,
              HasSubstr("stored already"));
  EXPECT_THAT(Run("compress", {"--file", dir_.File("text")}).out, Not(HasSubstr("stored already")));
  EXPECT_EQ(Run("stat", {key, "--json"}).json()["bands"].size(), 6);
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

TEST_F(CtlTest, GivesUpBandsAndRemovesObjects) {
  StartStore();
  StartCompressor();
  const std::string key = CompressText();
  const Outcome less = Run("rm", {key, "--keep_ratio=0.35", "--json"});
  ASSERT_EQ(less.exit_code, 0) << less.err;
  EXPECT_EQ(less.json()["resident_bands"], 3);
  EXPECT_THAT(Run("stat", {key}).out, ContainsRegex("\n *0.4 .* gone\n"));
  EXPECT_EQ(Run("rm", {key, "--keep_ratio=nan"}).exit_code, 2);
  EXPECT_EQ(Run("rm", {key, "--keep_ratio=1.5"}).exit_code, 2);
  EXPECT_THAT(Run("rm", {key}).out, HasSubstr("removed " + key));
  for (const char* command : {"rm", "stat", "verify"}) {
    SCOPED_TRACE(command);
    const Outcome missing = Run(command, {key});
    EXPECT_EQ(missing.exit_code, 3);
    EXPECT_THAT(missing.err, HasSubstr("not found"));
  }
  EXPECT_EQ(Run("rm", {}).exit_code, 2);
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

TEST_F(CtlTest, PinsAndLimitsTheLifeOfAnObject) {
  StartStore();
  StartCompressor();
  const std::string key = CompressText();
  const Outcome pinned = Run("pin", {key});
  EXPECT_EQ(pinned.exit_code, 0) << pinned.err;
  EXPECT_THAT(pinned.out, HasSubstr("pinned, never expires"));
  EXPECT_GT(Run("stats", {"--json"}).json()["tenant"].value("pinned_bytes", 0), 0);
  EXPECT_THAT(Run("stats").out, HasSubstr("own: 1 objects"));
  EXPECT_THAT(Run("stat", {key}).out, HasSubstr("kept      pinned"));
  const Outcome unpinned = Run("unpin", {key, "--json"});
  EXPECT_EQ(unpinned.exit_code, 0) << unpinned.err;
  EXPECT_FALSE(unpinned.json().value("pinned", true));
  EXPECT_THAT(Run("ttl", {key, "36h"}).out, HasSubstr("not pinned, expires 20"));
  EXPECT_EQ(Run("ttl", {key, "never", "--json"}).json().value("expires_unix_ms", -1), 0);
  EXPECT_EQ(Run("ttl", {key, "1ms"}).exit_code, 0);
  // A miss at once; the sweep then tells who watches.
  EXPECT_EQ(Run("stat", {key}).exit_code, 3);
  EXPECT_EQ(Run("pin", {key}).exit_code, 3);
}

TEST_F(CtlTest, ATenantIsShownItsOwnObjects) {
  StartStore();
  StoreClient other(MakeChannel(store_->address()), *TenantId::FromString("other"));
  const CompressedObject object = MakeTestObject({});
  KVTIER_ASSERT_OK(other.Put(object, v1::DURABILITY_HOST, nullptr, CancelToken(),
                             absl::Now() + absl::Seconds(50)));
  const std::string key = object.manifest->key.ToHex();
  EXPECT_EQ(Run("ls", {"--json"}).json().size(), 0u);
  const Outcome listed = Run("ls", {"--json", "--tenant=other"});
  ASSERT_EQ(listed.json().size(), 1u) << listed.out << listed.err;
  EXPECT_EQ(listed.json()[0].value("key", ""), key);
  EXPECT_EQ(Run("stat", {key}).exit_code, 3);
  for (const std::string command : {"stat", "verify", "pin", "unpin"}) {
    const Outcome outcome = Run(command, {key, "--tenant=other"});
    EXPECT_EQ(outcome.exit_code, 0) << command << ": " << outcome.err;
  }
  const Outcome fetched = Run("fetch", {key, "--tenant=other", "--out", dir_.File("fetched")});
  EXPECT_EQ(fetched.exit_code, 0) << fetched.err;
  const Outcome rebanded = Run("reband", {key, "--edges=0.3,1", "--tenant=other", "--json"});
  EXPECT_EQ(rebanded.exit_code, 0) << rebanded.err;
  EXPECT_TRUE(rebanded.json().value("stored", false)) << rebanded.out;
  EXPECT_EQ(Run("stats", {"--json", "--tenant=other"}).json()["tenant"].value("objects", 0), 1);
  EXPECT_EQ(Run("rm", {key}).exit_code, 3);
  EXPECT_EQ(Run("rm", {key, "--tenant=other"}).exit_code, 0);
}

TEST_F(CtlTest, WatchesAndRemovesMany) {
  StartStore();
  StartCompressor();
  const std::string key = CompressText();
  const std::unique_ptr<ChildProcess> watch =
      Begin("watch-", {"watch", "--json", "--events=1", "--store=" + store_->address()});
  const std::vector<std::string> lines = AwaitLines(*watch, "watch-", 1);
  ASSERT_EQ(lines.size(), 1u) << Finish(*watch, "watch-").err;
  const auto snapshot = nlohmann::json::parse(lines[0], nullptr, /*allow_exceptions=*/false);
  ASSERT_EQ(snapshot.value("event", ""), "snapshot") << lines[0];
  EXPECT_EQ(snapshot["objects"][0].value("key", ""), key);
  const std::string incarnation =
      absl::StrCat("--incarnation=", snapshot.value("incarnation", uint64_t{0}));
  const std::string after = absl::StrCat("--after=", snapshot.value("sequence", uint64_t{0}));

  EXPECT_THAT(Run("rm", {"--model=nobody"}).err, HasSubstr("no stored object"));
  const std::string model = Run("ls", {"--json"}).json()[0].value("model", "");
  const Outcome dry = Run("rm", {"--model", model, "--dry_run"});
  EXPECT_THAT(dry.out, StartsWith("would remove 1 objects"));
  EXPECT_EQ(Run("ls", {"--json"}).json().size(), 1u);
  const Outcome removed = Run("rm", {"--model", model, "--json"});
  EXPECT_EQ(removed.exit_code, 0) << removed.err;
  EXPECT_EQ(removed.json().value("objects", 0), 1);
  EXPECT_THAT(Run("rm", {"--all"}).out, StartsWith("removed 0 objects"));

  // Whoever was watching has seen it; whoever comes back later is told.
  const Outcome watched = Finish(*watch, "watch-");
  EXPECT_EQ(watched.exit_code, 0) << watched.err;
  EXPECT_THAT(watched.out, AllOf(HasSubstr("\"removed\""), HasSubstr(key))) << watched.out;
  const Outcome event = Run("watch", {"--events=1", incarnation, after});
  EXPECT_EQ(event.exit_code, 0) << event.err;
  EXPECT_THAT(event.out, HasSubstr(key + " removed, deleted"));
}

TEST_F(CtlTest, FetchesToAFolderAndVerifiesIt) {
  StartStore();
  StartCompressor();
  const std::string key = CompressText();
  const std::string folder = dir_.File("fetched/here");
  const Outcome fetched = Run("fetch", {key, "--ratio=0.3", "--out", folder, "--json"});
  ASSERT_EQ(fetched.exit_code, 0) << fetched.err;
  EXPECT_EQ(fetched.json()["ratio"], 0.3);
  EXPECT_EQ(fetched.json()["bands"], 3);
  const Outcome intact = RunExactly({"verify", "--data_dir", folder, "--json"});
  ASSERT_EQ(intact.exit_code, 0) << intact.err;
  EXPECT_EQ(intact.json()["objects"], 1);
  EXPECT_EQ(intact.json()["bytes"], fetched.json()["bytes"]);

  const std::string segment = folder + "/segment-01-0001";
  const uint64_t size = std::filesystem::file_size(segment);
  for (const uint64_t offset : {uint64_t{0}, size / 2, size - 1}) {
    FlipBit(segment, offset);
    const Outcome damaged = RunExactly({"verify", "--data_dir", folder});
    EXPECT_EQ(damaged.exit_code, 1);
    EXPECT_THAT(damaged.err, HasSubstr("DATA_LOSS"));
    FlipBit(segment, offset);
  }
  EXPECT_EQ(RunExactly({"verify", "--data_dir", folder}).exit_code, 0);
  TruncateFile(segment, size - 1);
  EXPECT_EQ(RunExactly({"verify", "--data_dir", folder}).exit_code, 1);
  EXPECT_EQ(RunExactly({"verify", "--data_dir", dir_.File("missing")}).exit_code, 3);
  EXPECT_EQ(Run("fetch", {std::string(64, 'a'), "--out", folder}).exit_code, 3);
}

TEST_F(CtlTest, VerifiesARunningAndAStoppedStore) {
  StartStore();
  StartCompressor();
  const std::string key = CompressText();
  const Outcome online = Run("verify", {"--json"});
  ASSERT_EQ(online.exit_code, 0) << online.err;
  EXPECT_EQ(online.json()["objects"], 1);
  EXPECT_EQ(Run("verify", {key, "--json"}).json(), online.json());
  KVTIER_ASSERT_OK(store_->Stop());

  const std::string data = dir_.File("data");
  const Outcome offline = RunExactly({"verify", "--data_dir", data, "--json"});
  ASSERT_EQ(offline.exit_code, 0) << offline.err;
  EXPECT_EQ(offline.json(), online.json());

  // Damage one byte in the middle of the largest file of values: where the segments are.
  std::filesystem::path largest;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(data)) {
    const std::string extension = entry.path().extension();
    if ((extension == ".blob" || extension == ".sst") &&
        (largest.empty() || entry.file_size() > std::filesystem::file_size(largest))) {
      largest = entry.path();
    }
  }
  FlipBit(largest, std::filesystem::file_size(largest) / 2);
  const Outcome damaged = RunExactly({"verify", "--data_dir", data});
  EXPECT_EQ(damaged.exit_code, 1) << largest;
  EXPECT_THAT(damaged.err, AllOf(HasSubstr(key), HasSubstr("DATA_LOSS"), HasSubstr("band")));
}

}  // namespace
}  // namespace kvtier
