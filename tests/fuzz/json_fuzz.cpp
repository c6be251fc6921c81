#include "core/errors.h"
#include "core/json.h"

namespace {

/// Every getter on every key: each either answers or throws a ConfigError.
void use(const cinch::JsonObject& object, int depth) {
  const auto tolerate = [](auto body) {
    try {
      body();
    } catch (const cinch::ConfigError&) {
    }
  };
  for (const auto& item : object.json().items()) {
    const std::string key = item.key();
    tolerate([&] { object.integer(key); });
    tolerate([&] { object.number(key); });
    tolerate([&] { object.boolean_or(key, false); });
    tolerate([&] { object.string(key); });
    tolerate([&] { object.numbers(key); });
    tolerate([&] { object.integers(key); });
    tolerate([&] { object.strings(key); });
    if (depth < 3) {
      tolerate([&] { use(object.object(key), depth + 1); });
      tolerate([&] {
        for (const cinch::JsonObject& inner : object.objects(key)) use(inner, depth + 1);
      });
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const cinch::JsonObject object(cinch::parse_json({reinterpret_cast<const char*>(data), size}, "fuzz.json"),
                                   "fuzz.json");
    use(object, 0);
  } catch (const cinch::ConfigError&) {
  }
  return 0;
}
