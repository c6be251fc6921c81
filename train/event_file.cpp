#include "train/event_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>

#include "core/files.h"

namespace cinch {
namespace {

namespace fs = std::filesystem;

constexpr const char* kPrefix = "events.out.tfevents.";
constexpr const char* kFileVersion = "brain.Event:2";  // from 2 on readers go by SessionLog, not by falling steps

/// Field numbers of the three messages.
enum EventField { kWallTime = 1, kStep = 2, kVersion = 3, kSummary = 5, kSessionLog = 7 };
enum SummaryField { kValue = 1, kTag = 1, kSimpleValue = 2 };
enum SessionLogField { kStatus = 1 };
constexpr uint64_t kStart = 1;  // SessionLog.SessionStatus

enum WireType { kVarint = 0, kFixed64 = 1, kLengthDelimited = 2, kFixed32 = 5 };

/// Little-endian, whatever the machine.
template <typename T>
void put_fixed(std::string& out, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) out.push_back(static_cast<char>(value >> (8 * i) & 0xFF));
}

void put_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>((value & 0x7F) | 0x80));
  out.push_back(static_cast<char>(value));
}

void put_key(std::string& out, int field, WireType type) { put_varint(out, static_cast<uint64_t>(field) << 3 | type); }

void put_integer(std::string& out, int field, uint64_t value) {
  put_key(out, field, kVarint);
  put_varint(out, value);
}

void put_bytes(std::string& out, int field, std::string_view bytes) {
  put_key(out, field, kLengthDelimited);
  put_varint(out, bytes.size());
  out += bytes;
}

/// An event's time and step; its content follows.
std::string event_at(int64_t step) {
  const double now = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  std::string event;
  put_key(event, kWallTime, kFixed64);
  put_fixed(event, std::bit_cast<uint64_t>(now));
  put_integer(event, kStep, static_cast<uint64_t>(step));
  return event;
}

std::string summary_value(const EventScalar& scalar) {
  std::string value;
  put_bytes(value, kTag, scalar.tag);
  put_key(value, kSimpleValue, kFixed32);
  put_fixed(value, std::bit_cast<uint32_t>(static_cast<float>(scalar.value)));
  return value;
}

std::array<uint32_t, 256> crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    table[i] = i;
    for (int bit = 0; bit < 8; ++bit) table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0x82F63B78u : 0u);
  }
  return table;
}

uint32_t masked_crc(std::string_view bytes) {
  return std::rotr(crc32c(std::as_bytes(std::span(bytes))), 15) + 0xA282EAD8u;
}

/// Seconds for a new file's name: now, or after every file that is there.
int64_t name_seconds(const fs::path& folder) {
  int64_t seconds =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  std::error_code error;
  const fs::directory_iterator entries(folder, error);
  if (error) throw_system_error("cannot list", folder, error.value());
  for (const auto& entry : entries) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(kPrefix)) continue;
    int64_t taken = 0;
    const char* begin = name.data() + std::strlen(kPrefix);
    // Beyond ten digits it is no time, and names would no longer sort as numbers.
    const auto [end, fault] = std::from_chars(begin, name.data() + name.size(), taken);
    if (fault == std::errc() && end - begin <= 10) seconds = std::max(seconds, taken + 1);
  }
  return seconds;
}

std::string host_name() {
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) != 0 || name[0] == '\0') return "localhost";
  return name.data();
}

}  // namespace

uint32_t crc32c(std::span<const std::byte> bytes) {
  static const std::array<uint32_t, 256> table = crc_table();
  uint32_t crc = 0xFFFFFFFFu;
  for (const std::byte byte : bytes) crc = crc >> 8 ^ table[(crc ^ static_cast<uint32_t>(byte)) & 0xFF];
  return ~crc;
}

std::vector<EventScalar> event_scalars(const Json& line) {
  std::vector<EventScalar> scalars;
  for (const auto& [key, value] : line.items()) {
    if (key == "step" || !(value.is_number() || value.is_boolean())) continue;
    scalars.push_back({"train/" + key, value.is_boolean() ? double(value.get<bool>()) : value.get<double>()});
  }
  return scalars;
}

EventFile::EventFile(const fs::path& folder, int64_t first_step) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw_system_error("cannot make the folder", folder, error.value());
  path_ = folder / fmt::format("{}{:010}.{}.{}", kPrefix, name_seconds(folder), host_name(), ::getpid());
  descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
  if (descriptor_ < 0) throw_system_error("cannot create", path_, errno);
  std::string version = event_at(0);
  put_bytes(version, kVersion, kFileVersion);
  write_record(version);
  std::string log, start = event_at(first_step);
  put_integer(log, kStatus, kStart);
  put_bytes(start, kSessionLog, log);
  write_record(start);
}

EventFile::~EventFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void EventFile::add(int64_t step, std::span<const EventScalar> scalars) {
  std::string summary, event = event_at(step);
  for (const EventScalar& scalar : scalars) put_bytes(summary, kValue, summary_value(scalar));
  put_bytes(event, kSummary, summary);
  write_record(event);
}

void EventFile::write_record(const std::string& event) {
  std::string record;
  put_fixed<uint64_t>(record, event.size());
  put_fixed(record, masked_crc(record));
  record += event;
  put_fixed(record, masked_crc(event));
  for (size_t done = 0; done < record.size();) {
    const ssize_t written = ::write(descriptor_, record.data() + done, record.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) throw_system_error("cannot write", path_, errno);
    done += static_cast<size_t>(written);
  }
}

}  // namespace cinch
