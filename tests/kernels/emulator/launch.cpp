// The launch: blocks one after another, and in each of them every thread as far as it can go, until all have ended.
#include <algorithm>
#include <mutex>
#include <numeric>
#include <random>

#include "state.h"

namespace emulator {
namespace {

void poison_static_shared() {  // not by memset, which a sanitizer would check
  for (volatile unsigned char* byte = __start_emulated_shared; byte < __stop_emulated_shared; ++byte) *byte = 0xff;
}

void run_thread() {
  Thread& thread = *machine.running;
  thread.fibre.arrived();
  acquire(machine.started);
  machine.kernel->call(machine.arguments);
  if (!thread.copies.empty() && !machine.settings.lax_wait) stop("the thread ended with asynchronous copies under way");
  release(machine.ended);
  thread.ended = true;
  thread.fibre.leave(true);
}

bool can_go_on(const Thread& thread) {
  if (thread.ended) return false;
  if (thread.wait == Wait::WARP) return machine.warps[thread.number / 32].generation != thread.generation;
  if (thread.wait == Wait::BARRIER) return machine.barrier_generation != thread.generation;
  return true;
}

std::string describe_deadlock() {
  const Thread* first = nullptr;
  for (auto& thread : machine.threads)
    if (!thread->ended) {
      first = thread.get();
      break;
    }
  for (auto& thread : machine.threads)
    if (thread->ended || !same(thread->site, first->site))
      return "deadlock: " + state_of(*first) + ", and " + state_of(*thread);
  return "deadlock: " + state_of(*first);
}

template <class Random>
std::vector<int> make_order(int count, Random& random) {
  std::vector<int> order(count);
  std::iota(order.begin(), order.end(), 0);
  if (machine.settings.schedule == 1) std::reverse(order.begin(), order.end());
  if (machine.settings.schedule == 2)  // not std::shuffle, whose order the standard leaves open
    for (int i = count - 1; i > 0; --i) std::swap(order[i], order[random() % (unsigned)(i + 1)]);
  return order;
}

template <class Random>
void run_block(Random& random) {
  int count = (int)machine.threads.size();
  machine.warps.assign(count / 32, Warp());
  machine.at_barrier = 0;
  machine.shared = std::make_unique<SharedMemory>(machine.shared_bytes);
  poison_static_shared();
  for (int i = 0; i < count; ++i) {
    if (!machine.threads[i]) machine.threads[i] = std::make_unique<Thread>();
    Thread& thread = *machine.threads[i];
    thread.number = i;
    thread.ended = false;
    thread.wait = Wait::NOTHING;
    thread.groups = 0;
    thread.copies.clear();
    thread.fibre.start(run_thread);
  }
  release(machine.started);
  for (int ended = 0; ended < count;) {
    bool moved = false;
    for (int i : make_order(count, random)) {
      Thread& thread = *machine.threads[i];
      if (!can_go_on(thread)) continue;
      machine.running = &thread;
      thread.fibre.enter();
      if (!machine.error.empty()) return;
      machine.running = nullptr;
      moved = true;
      ended += thread.ended;
    }
    if (!moved) return note(describe_deadlock());
  }
  acquire(machine.ended);
  if (machine.shared->overrun())
    return note("it wrote beyond its " + std::to_string(machine.shared_bytes) + " bytes of shared memory");
  record_block(count);
}

void run_grid() {
  std::mt19937 random((unsigned)machine.settings.seed);
  Index grid = machine.grid;
  for (int i : make_order((int)(grid.x * grid.y * grid.z), random)) {
    unsigned number = (unsigned)i;
    machine.block = {number % grid.x, number / grid.x % grid.y, number / (grid.x * grid.y)};
    run_block(random);
    if (!machine.error.empty()) return forget_block();
  }
}

const Kernel* find(const char* name) {
  for (const Kernel* kernel = kernels; kernel->name; ++kernel)
    if (!strcmp(kernel->name, name)) return kernel;
  return nullptr;
}

std::string refusal(const char* name, const unsigned grid[3], unsigned block, unsigned shared, size_t argument_bytes) {
  const Kernel* kernel = find(name);
  if (!kernel) return std::string("there is no kernel ") + name;
  if (kernel->argument_bytes != argument_bytes || argument_bytes > sizeof(machine.arguments))
    return std::string(name) + " takes arguments of " + std::to_string(kernel->argument_bytes) + " bytes, not " +
           std::to_string(argument_bytes);
  if (!block || block % 32 || block > 1024)
    return "a block has whole warps of 32 threads, at most 1024 threads, not " + std::to_string(block);
  if (shared > MOST_SHARED_BYTES)
    return "a block can have " + std::to_string(MOST_SHARED_BYTES) + " bytes of shared memory, not " +
           std::to_string(shared);
  if (!grid[0] || !grid[1] || !grid[2] || grid[1] > 65535 || grid[2] > 65535)
    return "a grid has 1 to 2^31 - 1, 65535 and 65535 blocks";
  return "";
}

}  // namespace
}  // namespace emulator

using namespace emulator;

static std::mutex one_launch;

// Runs a kernel. 0, or 1 with a sentence in `emulator_error`: the launch makes no sense, or the kernel broke a rule.
extern "C" int emulate(const char* kernel, const unsigned grid[3], unsigned block, unsigned shared_bytes,
                       const void* arguments, size_t argument_bytes, const Settings* settings) {
  std::lock_guard<std::mutex> lock(one_launch);
  machine.error = refusal(kernel, grid, block, shared_bytes, argument_bytes);
  if (!machine.error.empty()) return 1;
  machine.settings = *settings;
  machine.kernel = find(kernel);
  machine.grid = {grid[0], grid[1], grid[2]};
  machine.shared_bytes = shared_bytes;
  memcpy(machine.arguments, arguments, argument_bytes);
  machine.threads.resize(block);
  run_grid();
  machine.running = nullptr;
  machine.shared.reset();
  if (!machine.error.empty()) machine.threads.clear();  // they stand where they stopped
  return !machine.error.empty();
}

extern "C" const char* emulator_error() { return machine.error.c_str(); }
