// A heap of large blocks under PyTorch's CPU allocator.

#include "arena.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <iterator>
#include <map>
#include <mutex>

namespace gnfast::cpu {
namespace {

constexpr size_t kSmallest = size_t{64} << 10;
constexpr size_t kPage = size_t{4} << 10;
constexpr size_t kHugePage = size_t{2} << 20;

size_t round_up(size_t x, size_t to) {
  return (x + to - 1) / to * to;
}

uintptr_t address(const void* data) {
  return reinterpret_cast<uintptr_t>(data);
}

class Arena {
 public:
  // Reserves as many addresses as the machine has memory; they become memory when `grow` says so and they are touched.
  Arena() : reserved_(round_up(sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE), kHugePage)) {
    void* const start =
        mmap(nullptr, reserved_ + kHugePage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) return;
    base_ = static_cast<char*>(start) + round_up(address(start), kHugePage) - address(start);
#ifdef MADV_HUGEPAGE
    madvise(base_, reserved_, MADV_HUGEPAGE);
#endif
  }

  bool exists() const { return base_ != nullptr; }
  bool contains(const void* data) const { return address(data) - address(base_) < reserved_; }

  // Null if there is no room.
  void* allocate(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    const size_t size = round_up(bytes, kPage);
    auto block = best_fit(size);
    if (block == free_.end() && !grow(size)) {
      ++use_.refused;
      return nullptr;
    }
    if (block == free_.end()) block = std::prev(free_.end());
    if (block->second > size) free_.emplace_hint(std::next(block), block->first + size, block->second - size);
    block->second = size;
    const size_t offset = block->first;
    used_.insert(free_.extract(block));
    ++use_.blocks;
    use_.in_use += size;
    return base_ + offset;
  }

  // Allocates nothing, so that it cannot fail.
  void free(void* data) {
    const std::lock_guard<std::mutex> lock(mutex);
    auto block = free_.insert(used_.extract(static_cast<char*>(data) - base_)).position;
    use_.in_use -= block->second;
    if (block != free_.begin()) block = join(std::prev(block), block);
    if (std::next(block) != free_.end()) join(block, std::next(block));
  }

  void release() {
    const std::lock_guard<std::mutex> lock(mutex);
    // The addresses stay readable and writable.
    for (const auto& [offset, size] : free_) madvise(base_ + offset, size, MADV_DONTNEED);
    if (free_.empty()) return;
    const auto last = std::prev(free_.end());
    if (last->first + last->second != held_) return;
    held_ = last->first;
    free_.erase(last);
  }

  ArenaUse use() {
    const std::lock_guard<std::mutex> lock(mutex);
    ArenaUse use = use_;
    use.held = held_;
    return use;
  }

  // Held while the process forks, so that the child does not find it locked by a thread that it lacks.
  std::mutex mutex;

 private:
  using Blocks = std::map<size_t, size_t>;  // offset -> size

  Blocks::iterator best_fit(size_t size) {
    auto best = free_.end();
    for (auto block = free_.begin(); block != free_.end(); ++block) {
      if (block->second >= size && (best == free_.end() || block->second < best->second)) best = block;
    }
    return best;
  }

  // Makes the last free block one of at least `size`.
  bool grow(size_t size) {
    auto last = free_.empty() ? free_.end() : std::prev(free_.end());
    const bool extend = last != free_.end() && last->first + last->second == held_;
    const size_t more = round_up(size - (extend ? last->second : 0) + held_, kHugePage) - held_;
    if (more > reserved_ - held_ || mprotect(base_ + held_, more, PROT_READ | PROT_WRITE) != 0) return false;
    if (extend) {
      last->second += more;
    } else {
      free_.emplace_hint(free_.end(), held_, more);
    }
    held_ += more;
    ++use_.grown;
    return true;
  }

  Blocks::iterator join(Blocks::iterator left, Blocks::iterator right) {
    if (left->first + left->second != right->first) return right;
    left->second += right->second;
    free_.erase(right);
    return left;
  }

  char* base_ = nullptr;
  size_t reserved_, held_ = 0;
  Blocks free_, used_;
  ArenaUse use_{};
};

std::atomic<int> open_scopes{0};

// Never destroyed: tensors may die after static objects do.
Arena& arena() {
  static Arena& it = *new Arena;
  return it;
}

void deallocate(void* data) {
  if (data != nullptr && arena().contains(data)) {
    c10::profiledCPUMemoryReporter().Delete(data);
    arena().free(data);
  } else {
    c10::GetDefaultCPUAllocator()->raw_deleter()(data);
  }
}

struct ArenaAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes >= kSmallest && open_scopes.load(std::memory_order_relaxed) > 0) {
      if (void* const data = arena().allocate(bytes)) {
        c10::profiledCPUMemoryReporter().New(data, bytes);
        return {data, data, &deallocate, c10::Device(c10::DeviceType::CPU)};
      }
    }
    c10::DataPtr block = c10::GetDefaultCPUAllocator()->allocate(bytes);
    // `raw_deleter` promises one deleter for all.
    (void)block.compare_exchange_deleter(c10::GetDefaultCPUAllocator()->raw_deleter(), &deallocate);
    return block;
  }

  c10::DeleterFnPtr raw_deleter() const override { return &deallocate; }

  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

bool install() {
  if (c10::GetCPUAllocator() != c10::GetDefaultCPUAllocator() || !arena().exists()) return false;
  auto* const allocator = new ArenaAllocator;
  c10::SetCPUAllocator(allocator);
  if (c10::GetCPUAllocator() != allocator) return false;
  pthread_atfork([] { arena().mutex.lock(); }, [] { arena().mutex.unlock(); }, [] { arena().mutex.unlock(); });
  return true;
}

}  // namespace

bool install_arena() {
  static const bool installed = install();
  return installed;
}

void open_arena() {
  ++open_scopes;
}

void close_arena() {
  --open_scopes;
}

void release_arena() {
  arena().release();
}

ArenaUse arena_use() {
  return arena().use();
}

}  // namespace gnfast::cpu
