#include "src/byte_size.h"

#include <fmt/format.h>

#include <cctype>
#include <map>

#include "core/errors.h"

namespace cinch {

uint64_t parse_byte_size(const std::string& flag, const std::string& text) {
  static const std::map<std::string, uint64_t> units = {{"KB", 1000},          {"MB", 1000000},     {"GB", 1000000000},
                                                        {"TB", 1000000000000}, {"KiB", 1ULL << 10}, {"MiB", 1ULL << 20},
                                                        {"GiB", 1ULL << 30},   {"TiB", 1ULL << 40}};
  size_t end = 0;
  while (end < text.size() && std::isdigit(static_cast<unsigned char>(text[end])) != 0) ++end;
  const auto unit = units.find(text.substr(end));
  if (end == 0 || end > 6 || unit == units.end() || std::stoull(text.substr(0, end)) == 0) {
    throw UsageError(fmt::format("{}: \"{}\" is not a size", flag, text), "for example 5GB, 500MB or 80GiB");
  }
  return std::stoull(text.substr(0, end)) * unit->second;
}

}  // namespace cinch
