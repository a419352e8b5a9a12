#include "tests/testing/files.h"

#include <filesystem>
#include <fstream>
#include <iterator>

#include "base/log.h"

namespace kvtier {

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  KVTIER_CHECK(file.is_open()) << path;
  std::string content{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  KVTIER_CHECK(!file.bad()) << path;
  return content;
}

void WriteFile(const std::string& path, absl::string_view content) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  file.close();
  KVTIER_CHECK(!file.fail()) << path;
}

void FlipBit(const std::string& path, uint64_t offset, int bit) {
  KVTIER_CHECK_LT(offset, std::filesystem::file_size(path)) << path;
  KVTIER_CHECK(bit >= 0 && bit < 8) << bit;
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekg(static_cast<std::streamoff>(offset));
  char byte = 0;
  file.get(byte);
  file.seekp(static_cast<std::streamoff>(offset));
  file.put(static_cast<char>(byte ^ (1 << bit)));
  file.close();
  KVTIER_CHECK(!file.fail()) << path;
}

void TruncateFile(const std::string& path, uint64_t size) {
  KVTIER_CHECK_LE(size, std::filesystem::file_size(path)) << path;
  std::filesystem::resize_file(path, size);
}

}  // namespace kvtier
