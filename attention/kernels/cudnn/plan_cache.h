// A bounded number of values by key; the one that was not asked for longest goes first. Values are built one at a time,
// outside of the lock of those that are there already.
#pragma once

#include <cstddef>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>

namespace cinch {

template <typename Value>
class PlanCache {
 public:
  using Pointer = std::shared_ptr<const Value>;

  explicit PlanCache(size_t capacity) : capacity_(capacity) {}

  /// Null where there is none.
  Pointer find(const std::string& key) {
    const std::lock_guard lock(lock_);
    const auto found = places_.find(key);
    if (found == places_.end()) return nullptr;
    values_.splice(values_.begin(), values_, found->second);
    return found->second->second;
  }

  /// What `build` throws is thrown, and nothing kept.
  Pointer find_or_build(const std::string& key, const std::function<Pointer()>& build) {
    if (Pointer found = find(key)) return found;
    const std::lock_guard building(building_);
    if (Pointer found = find(key)) return found;  // built by another thread in the meantime
    Pointer built = build();
    keep(key, built);
    return built;
  }

  /// In place of one that is there.
  void keep(const std::string& key, Pointer value) {
    std::list<Entry> dropped;  // freed after the lock
    const std::lock_guard lock(lock_);
    if (const auto found = places_.find(key); found != places_.end()) {
      dropped.splice(dropped.begin(), values_, found->second);
      places_.erase(found);
    }
    values_.emplace_front(key, std::move(value));
    places_[key] = values_.begin();
    while (values_.size() > capacity_) {
      places_.erase(values_.back().first);
      dropped.splice(dropped.begin(), values_, std::prev(values_.end()));
    }
  }

  size_t size() {
    const std::lock_guard lock(lock_);
    return values_.size();
  }

 private:
  using Entry = std::pair<std::string, Pointer>;

  const size_t capacity_;
  std::mutex lock_, building_;
  std::list<Entry> values_;  // the latest first
  std::unordered_map<std::string, typename std::list<Entry>::iterator> places_;
};

}  // namespace cinch
