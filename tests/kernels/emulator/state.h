// What the machine knows while a kernel runs.
#pragma once
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "fibre.h"
#include "machine.h"

namespace emulator {

enum class Wait { NOTHING, WARP, BARRIER };

struct PendingCopy {
  Copy copy;
  int group;
};

struct Thread {
  Fibre fibre;
  int number;
  bool ended = false;
  Wait wait = Wait::NOTHING;
  unsigned generation = 0;  // of what it waits for
  Site site{};              // where it waits
  std::deque<PendingCopy> copies;
  int groups = 0;  // committed
};

struct Warp {
  int arrived = 0;
  unsigned generation = 0;
  int first = 0;  // the lane that the others meet
  void* operands[32];
};

// The least that a block may have on sm_80 and later, all architectures that have asynchronous copies.
constexpr size_t MOST_SHARED_BYTES = 101376;

// Filled with what is NaN in every float type. AddressSanitizer sees what lies beyond; else there is room to spare, so
// that a stray write does no harm before it is found.
struct SharedMemory {
  explicit SharedMemory(size_t size) : size(size), room(UNDER_ADDRESS_SANITIZER ? size : 2 * MOST_SHARED_BYTES) {
    if (posix_memalign((void**)&bytes, 128, room ? room : 1)) abort();
    memset(bytes, 0xff, room);
  }
  SharedMemory(const SharedMemory&) = delete;
  ~SharedMemory() { free(bytes); }
  bool overrun() const {
    for (size_t i = size; i < room; ++i)
      if (bytes[i] != 0xff) return true;
    return false;
  }
  size_t size, room;
  unsigned char* bytes = nullptr;
};

struct Machine {
  Settings settings;
  Index grid, block;
  const Kernel* kernel;
  size_t shared_bytes;
  alignas(16) unsigned char arguments[4096];
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Warp> warps;
  std::unique_ptr<SharedMemory> shared;
  Thread* running = nullptr;
  int at_barrier = 0, first_at_barrier = 0;
  unsigned barrier_generation = 0;
  std::string error;
  char started, ended, at_barriers[2];  // ThreadSanitizer knows these by their addresses
};
extern Machine machine;

// From the linker: the whole library, and its section of `__shared__` variables, which there may not be.
extern "C" {
extern const char __ehdr_start[] __attribute__((visibility("hidden")));
extern const char _end[] __attribute__((visibility("hidden")));
extern unsigned char __start_emulated_shared[] __attribute__((weak, visibility("hidden")));
extern unsigned char __stop_emulated_shared[] __attribute__((weak, visibility("hidden")));
}

void note(const std::string& error);  // the launch has failed, and why
[[noreturn]] void stop(const std::string& error);  // so says the running thread
std::string state_of(const Thread& thread);
bool same(const Site& a, const Site& b);

}  // namespace emulator
