#include "bench/redis_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/status_macros.h"

#if KVTIER_HAS_HIREDIS
#include <hiredis/hiredis.h>
#endif

namespace kvtier::bench {

#if KVTIER_HAS_HIREDIS

namespace {

constexpr absl::Duration kStartTimeout = absl::Seconds(30);

// Redis cannot be told to take a free port, so one that is free now is looked up. Should somebody
// else take it first, Redis ends and says so.
absl::StatusOr<int> FreePort() {
  const int probe = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  const bool bound = bind(probe, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0 &&
                     getsockname(probe, reinterpret_cast<sockaddr*>(&address), &length) == 0;
  close(probe);
  if (!bound) return absl::UnavailableError("no free port on loopback");
  return ntohs(address.sin_port);
}

struct ReplyDeleter {
  void operator()(redisReply* reply) const { freeReplyObject(reply); }
};
using Reply = std::unique_ptr<redisReply, ReplyDeleter>;

absl::Status Failed(const redisContext* context, const char* what) {
  return absl::UnavailableError(absl::StrCat("redis: ", what, ": ", context->errstr));
}

}  // namespace

absl::StatusOr<std::unique_ptr<RedisServer>> RedisServer::Start() {
  std::unique_ptr<RedisServer> redis(new RedisServer());
  KVTIER_ASSIGN_OR_RETURN(redis->scratch_, ScratchFolder::Create(""));
  KVTIER_ASSIGN_OR_RETURN(const int port, FreePort());
  absl::StatusOr<std::unique_ptr<Process>> process = Process::Start(
      {"redis-server", "--port", absl::StrCat(port), "--bind", "127.0.0.1", "--save", "",
       "--appendonly", "no", "--dir", redis->scratch_->path(), "--daemonize", "no"},
      redis->scratch_->path() + "/output",
      // Its allocator keeps what was freed, as TuneMalloc makes ours do.
      {{"MALLOC_CONF", "dirty_decay_ms:-1,muzzy_decay_ms:-1"}});
  if (absl::IsNotFound(process.status())) {
    return absl::FailedPreconditionError(
        absl::StrCat(process.status().message(), ": run scripts/bench-deps.sh"));
  }
  KVTIER_RETURN_IF_ERROR(process.status());
  redis->process_ = *std::move(process);
  const absl::Time deadline = absl::Now() + kStartTimeout;
  for (;;) {
    redis->context_ = redisConnect("127.0.0.1", port);
    if (redis->context_ != nullptr && redis->context_->err == 0) {
      const Reply pong(static_cast<redisReply*>(redisCommand(redis->context_, "PING")));
      if (pong != nullptr && pong->type == REDIS_REPLY_STATUS) return redis;
    }
    if (redis->context_ != nullptr) redisFree(redis->context_);
    redis->context_ = nullptr;
    if (redis->process_->has_ended() || absl::Now() > deadline) {
      return absl::UnavailableError(absl::StrCat("redis-server does not answer on port ", port));
    }
    absl::SleepFor(absl::Milliseconds(20));
  }
}

RedisServer::~RedisServer() {
  if (context_ != nullptr) redisFree(context_);
}

absl::Status RedisServer::Set(const std::string& name, std::span<const std::byte> value) {
  const Reply reply(static_cast<redisReply*>(
      redisCommand(context_, "SET %b %b", name.data(), name.size(), value.data(), value.size())));
  if (reply == nullptr) return Failed(context_, "SET");
  if (reply->type != REDIS_REPLY_STATUS) {
    return absl::ResourceExhaustedError(absl::StrCat("redis: SET: ", reply->str));
  }
  return absl::OkStatus();
}

absl::Status RedisServer::SetMany(std::span<const std::string> names,
                                  std::span<const std::span<const std::byte>> values) {
  std::vector<const char*> words = {"MSET"};
  std::vector<size_t> lengths = {4};
  for (size_t i = 0; i < names.size(); ++i) {
    words.push_back(names[i].data());
    lengths.push_back(names[i].size());
    words.push_back(reinterpret_cast<const char*>(values[i].data()));
    lengths.push_back(values[i].size());
  }
  const Reply reply(static_cast<redisReply*>(
      redisCommandArgv(context_, static_cast<int>(words.size()), words.data(), lengths.data())));
  if (reply == nullptr) return Failed(context_, "MSET");
  if (reply->type != REDIS_REPLY_STATUS) {
    return absl::ResourceExhaustedError(absl::StrCat("redis: MSET: ", reply->str));
  }
  return absl::OkStatus();
}

absl::Status RedisServer::GetMany(std::span<const std::string> names,
                                  std::span<const std::span<std::byte>> outs) {
  std::vector<const char*> words = {"MGET"};
  std::vector<size_t> lengths = {4};
  for (const std::string& name : names) {
    words.push_back(name.data());
    lengths.push_back(name.size());
  }
  const Reply reply(static_cast<redisReply*>(
      redisCommandArgv(context_, static_cast<int>(words.size()), words.data(), lengths.data())));
  if (reply == nullptr) return Failed(context_, "MGET");
  if (reply->type != REDIS_REPLY_ARRAY || reply->elements != outs.size()) {
    return absl::DataLossError("redis: MGET answered for another number of values");
  }
  for (size_t i = 0; i < outs.size(); ++i) {
    const redisReply& value = *reply->element[i];
    if (value.type != REDIS_REPLY_STRING || static_cast<size_t>(value.len) != outs[i].size()) {
      return absl::DataLossError("redis: a value is missing or of another size");
    }
    std::memcpy(outs[i].data(), value.str, outs[i].size());
  }
  return absl::OkStatus();
}

absl::Status RedisServer::SendGet(const std::string& name) {
  int done = 0;
  if (redisAppendCommand(context_, "GET %b", name.data(), name.size()) != REDIS_OK) {
    return Failed(context_, "GET");
  }
  while (done == 0) {
    if (redisBufferWrite(context_, &done) != REDIS_OK) return Failed(context_, "GET");
  }
  return absl::OkStatus();
}

absl::Status RedisServer::ReceiveInto(std::span<std::byte> out) {
  void* raw = nullptr;
  if (redisGetReply(context_, &raw) != REDIS_OK) return Failed(context_, "GET");
  const Reply reply(static_cast<redisReply*>(raw));
  if (reply->type != REDIS_REPLY_STRING || static_cast<size_t>(reply->len) != out.size()) {
    return absl::DataLossError("redis: a value is missing or of another size");
  }
  std::memcpy(out.data(), reply->str, out.size());
  return absl::OkStatus();
}

#else  // KVTIER_HAS_HIREDIS

absl::StatusOr<std::unique_ptr<RedisServer>> RedisServer::Start() {
  return absl::FailedPreconditionError(
      "built without hiredis: run scripts/bench-deps.sh and build again");
}
RedisServer::~RedisServer() = default;
absl::Status RedisServer::Set(const std::string&, std::span<const std::byte>) {
  return absl::UnimplementedError("built without hiredis");
}
absl::Status RedisServer::SetMany(std::span<const std::string>,
                                  std::span<const std::span<const std::byte>>) {
  return absl::UnimplementedError("built without hiredis");
}
absl::Status RedisServer::GetMany(std::span<const std::string>,
                                  std::span<const std::span<std::byte>>) {
  return absl::UnimplementedError("built without hiredis");
}
absl::Status RedisServer::SendGet(const std::string&) {
  return absl::UnimplementedError("built without hiredis");
}
absl::Status RedisServer::ReceiveInto(std::span<std::byte>) {
  return absl::UnimplementedError("built without hiredis");
}

#endif  // KVTIER_HAS_HIREDIS

}  // namespace kvtier::bench
