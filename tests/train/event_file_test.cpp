#include "train/event_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <numeric>

#include "core/errors.h"
#include "core/files.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

using testing::ElementsAre;
using testing::SizeIs;

uint32_t crc_of(std::string_view bytes) { return crc32c(std::as_bytes(std::span(bytes))); }

// RFC 3720, appendix B.4, and the usual check word.
TEST(Crc32c, KnownAnswers) {
  EXPECT_EQ(crc_of(std::string(32, '\0')), 0x8A9136AAu);
  EXPECT_EQ(crc_of(std::string(32, '\xFF')), 0x62A8AB43u);
  std::string rising(32, '\0');
  std::iota(rising.begin(), rising.end(), '\0');
  EXPECT_EQ(crc_of(rising), 0x46DD794Eu);
  EXPECT_EQ(crc_of(std::string(rising.rbegin(), rising.rend())), 0x113FDB5Cu);
  EXPECT_EQ(crc_of("123456789"), 0xE3069283u);
  EXPECT_EQ(crc_of(""), 0u);
}

template <typename T>
T number_at(std::string_view bytes, size_t at) {
  T value{};
  std::memcpy(&value, bytes.substr(at, sizeof(T)).data(), sizeof(T));
  return value;
}

/// The events of a file; every length and both checksums are checked.
std::vector<std::string> events_of(const std::filesystem::path& path) {
  const std::string bytes = read_text(path);
  const auto masked = [](std::string_view part) {
    const uint32_t crc = crc_of(part);
    return ((crc >> 15) | (crc << 17)) + 0xA282EAD8u;
  };
  std::vector<std::string> events;
  for (size_t at = 0; at < bytes.size();) {
    const std::string_view rest = std::string_view(bytes).substr(at);
    const auto length = number_at<uint64_t>(rest, 0);
    EXPECT_LE(length + 16, rest.size());
    if (length + 16 > rest.size()) break;
    EXPECT_EQ(number_at<uint32_t>(rest, 8), masked(rest.substr(0, 8)));
    EXPECT_EQ(number_at<uint32_t>(rest, 12 + length), masked(rest.substr(12, length)));
    events.emplace_back(rest.substr(12, length));
    at += length + 16;
  }
  return events;
}

/// Behind the time, whose nine bytes come first.
std::string behind_time(const std::string& event) {
  EXPECT_EQ(event[0], '\x09');
  const auto time = number_at<double>(event, 1);
  EXPECT_GT(time, 1.7e9);
  EXPECT_LT(time, 1e10);
  return event.substr(9);
}

TEST(EventFile, WritesTheBytesOfTheFormat) {
  const TempFolder folder;
  const std::filesystem::path deep = folder / "runs/a";
  EventFile file(deep, 300);
  file.add(300, std::vector<EventScalar>{{"a/b", 1.5}, {"c", -2.0}});
  EXPECT_EQ(file.path().parent_path(), deep);
  const std::vector<std::string> events = events_of(file.path());
  ASSERT_THAT(events, SizeIs(3));
  using namespace std::string_literals;
  EXPECT_EQ(behind_time(events[0]), "\x10\x00\x1A\x0D"s + "brain.Event:2");
  EXPECT_EQ(behind_time(events[1]), "\x10\xAC\x02\x3A\x02\x08\x01"s) << "step 300, SessionLog START";
  const std::string a = "\x0A\x0A\x0A\x03"s + "a/b" + "\x15\x00\x00\xC0\x3F"s;
  const std::string c = "\x0A\x08\x0A\x01"s + "c" + "\x15\x00\x00\x00\xC0"s;
  EXPECT_EQ(behind_time(events[2]), "\x10\xAC\x02\x2A\x16"s + a + c);
}

TEST(EventFile, EveryStepIsInTheFileAtOnce) {
  const TempFolder folder;
  EventFile file(folder.path(), 1);
  for (int step = 1; step < 5; ++step) {
    file.add(step, std::vector<EventScalar>{{"loss", 1.0 / step}});
    EXPECT_THAT(events_of(file.path()), SizeIs(2 + step));
  }
}

TEST(EventFile, LaterFilesSortBehindEarlierOnes) {
  const TempFolder folder;
  write_text(folder / "events.out.tfevents.8999999999.elsewhere.1", "");
  write_text(folder / "events.out.tfevents.99999999999999.elsewhere.1", "");  // no time
  write_text(folder / "metrics.jsonl", "");
  const EventFile first(folder.path(), 1), second(folder.path(), 1);
  const std::string a = first.path().filename(), b = second.path().filename();
  EXPECT_TRUE(a.starts_with("events.out.tfevents.9000000000.")) << a;
  EXPECT_LT(a, b);
}

TEST(EventFile, LinesBecomeScalars) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<EventScalar> scalars =
      event_scalars({{"step", 7}, {"tokens", 4096}, {"loss", 0.5}, {"kl", nan}, {"skipped", true}, {"note", "x"}});
  ASSERT_THAT(scalars, SizeIs(4));
  EXPECT_EQ(scalars[0].tag, "train/tokens");
  EXPECT_EQ(scalars[0].value, 4096);
  EXPECT_EQ(scalars[1].tag, "train/loss");
  EXPECT_TRUE(std::isnan(scalars[2].value));
  EXPECT_EQ(scalars[3].value, 1);
}

TEST(EventFile, FaultsNameTheFile) {
  const TempFolder folder;
  write_text(folder / "taken", "");
  try {
    EventFile(folder / "taken", 1);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("taken"));
  }
}

/// A run that is killed at step 7 while it writes, and goes on from its state of step 5: what
/// tests/end_to_end/tensorboard.sh has TensorBoard read. In the folder that CINCH_EVENT_FOLDER names.
TEST(EventFile, ARunThatWasKilledAndResumed) {
  const TempFolder temporary;
  const char* named = std::getenv("CINCH_EVENT_FOLDER");
  const std::filesystem::path folder = named != nullptr ? std::filesystem::path(named) : temporary.path();
  const auto line_of = [](int step, int run) {
    return Json({{"step", step},
                 {"tokens", step * 4096},
                 {"loss", 2.5 / step + run},
                 {"kl", step == 3 ? std::numeric_limits<double>::quiet_NaN() : 1e-3 * step},
                 {"gradient_norm", step == 2 ? std::numeric_limits<double>::infinity() : 1e30 * step},
                 {"skipped", step == 3}});
  };
  std::vector<std::filesystem::path> files;
  std::string metrics;
  {
    EventFile file(folder / "events", 1);
    files.push_back(file.path());
    for (int step = 1; step <= 7; ++step) {
      file.add(step, event_scalars(line_of(step, 0)));
      if (step <= 5) metrics += line_of(step, 0).dump() + "\n";
    }
  }
  std::filesystem::resize_file(files[0], std::filesystem::file_size(files[0]) - 9);
  EventFile file(folder / "events", 6);
  files.push_back(file.path());
  for (int step = 6; step <= 9; ++step) {
    file.add(step, event_scalars(line_of(step, 1)));
    metrics += line_of(step, 1).dump() + "\n";
  }
  write_text(folder / "metrics.jsonl", metrics);
  EXPECT_LT(files[0], files[1]);
  EXPECT_THAT(events_of(files[1]), SizeIs(6));
}

}  // namespace
}  // namespace cinch
