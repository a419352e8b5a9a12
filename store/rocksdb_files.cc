#include "store/rocksdb_files.h"

#include <array>
#include <filesystem>
#include <memory>
#include <utility>

#include "base/log.h"
#include "base/status_macros.h"
#include "rocksdb/env.h"
#include "store/rocksdb_status.h"

namespace kvtier::rocksdb_files {
namespace {

rocksdb::Slice ToSlice(absl::string_view text) { return {text.data(), text.size()}; }

rocksdb::Env* OrDefault(rocksdb::Env* env) {
  return env != nullptr ? env : rocksdb::Env::Default();
}

}  // namespace

absl::StatusOr<bool> Exists(rocksdb::Env* env, const std::string& path) {
  const absl::Status status = Rocks(path, [&] { return OrDefault(env)->FileExists(path); });
  if (absl::IsNotFound(status)) return false;
  KVTIER_RETURN_IF_ERROR(status);
  return true;
}

absl::StatusOr<std::string> Read(rocksdb::Env* env, const std::string& path) {
  std::string text;
  KVTIER_RETURN_IF_ERROR(
      Rocks(path, [&] { return rocksdb::ReadFileToString(OrDefault(env), path, &text); }));
  return text;
}

absl::Status WriteAtomically(rocksdb::Env* env, const std::string& folder, const std::string& name,
                             absl::string_view content) {
  const std::string path = folder + "/" + name;
  return Rocks(path, [&] {
    rocksdb::Status status = rocksdb::WriteStringToFile(OrDefault(env), ToSlice(content),
                                                        path + ".new", /*should_sync=*/true);
    if (status.ok()) status = OrDefault(env)->RenameFile(path + ".new", path);
    std::unique_ptr<rocksdb::Directory> directory;
    if (status.ok()) status = OrDefault(env)->NewDirectory(folder, &directory);
    if (status.ok()) status = directory->Fsync();
    return status;
  });
}

absl::StatusOr<std::vector<std::string>> ListFolder(rocksdb::Env* env, const std::string& folder) {
  std::vector<std::string> names;
  KVTIER_RETURN_IF_ERROR(
      Rocks(folder, [&] { return OrDefault(env)->GetChildren(folder, &names); }));
  std::erase_if(names, [](const std::string& name) { return name == "." || name == ".."; });
  return names;
}

absl::Status CreateFolder(rocksdb::Env* env, const std::string& folder) {
  KVTIER_ASSIGN_OR_RETURN(const bool exists, Exists(env, folder));
  if (exists) {  // As a folder?
    return Rocks(folder, [&] { return OrDefault(env)->CreateDirIfMissing(folder); });
  }
  std::string parent = std::filesystem::path(folder).parent_path();
  if (parent.empty()) parent = ".";
  KVTIER_RETURN_IF_ERROR(CreateFolder(env, parent));
  return Rocks(folder, [&] {
    rocksdb::Status status = OrDefault(env)->CreateDirIfMissing(folder);
    std::unique_ptr<rocksdb::Directory> directory;
    if (status.ok()) status = OrDefault(env)->NewDirectory(parent, &directory);
    if (status.ok()) status = directory->Fsync();
    return status;
  });
}

absl::Status EmptyFolder(rocksdb::Env* env, const std::string& folder) {
  return Rocks(folder, [&] {
    rocksdb::Status status = OrDefault(env)->CreateDirIfMissing(folder);
    std::vector<std::string> names;
    if (status.ok()) status = OrDefault(env)->GetChildren(folder, &names);
    for (const std::string& name : names) {
      if (!status.ok()) break;
      if (name != "." && name != "..") status = OrDefault(env)->DeleteFile(folder + "/" + name);
    }
    return status;
  });
}

absl::Status Remove(rocksdb::Env* env, const std::string& path) {
  KVTIER_ASSIGN_OR_RETURN(const bool exists, Exists(env, path));
  if (!exists) return absl::OkStatus();
  return Rocks(path, [&] { return OrDefault(env)->DeleteFile(path); });
}

// Some file systems refuse it when the file is opened (tmpfs did, before Linux 6.6), others take
// the flag and fail the first read or write.
bool HasDirectIo(rocksdb::Env* env, const std::string& folder) {
  const std::string file = folder + "/direct-io.probe";
  constexpr size_t kBlockBytes = 4096;
  alignas(kBlockBytes) std::array<char, kBlockBytes> written, read;
  written.fill('k');
  read.fill(0);
  const absl::Status tried = Rocks(file, [&] {
    rocksdb::EnvOptions options;
    options.use_direct_writes = true;
    options.use_direct_reads = true;
    std::unique_ptr<rocksdb::WritableFile> writer;
    rocksdb::Status status = OrDefault(env)->NewWritableFile(file, &writer, options);
    if (status.ok()) status = writer->Append({written.data(), kBlockBytes});
    if (status.ok()) status = writer->Close();
    std::unique_ptr<rocksdb::RandomAccessFile> reader;
    if (status.ok()) status = OrDefault(env)->NewRandomAccessFile(file, &reader, options);
    rocksdb::Slice result;
    if (status.ok()) status = reader->Read(0, kBlockBytes, &result, read.data());
    if (status.ok() && result != rocksdb::Slice(written.data(), kBlockBytes)) {
      return rocksdb::Status::IOError("other bytes are read than were written");
    }
    return status;
  });
  Remove(env, file).IgnoreError();  // RocksDB ignores it.
  if (!tried.ok()) {
    KVTIER_LOG(INFO) << "files are read and written through the page cache: " << tried.message();
  }
  return tried.ok();
}

}  // namespace kvtier::rocksdb_files
