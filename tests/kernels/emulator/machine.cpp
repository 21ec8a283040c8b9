// What a running kernel asks for: to meet other threads, to copy while it goes on, to stop with a sentence.
#include <cstdarg>
#include <cstdint>
#include <cstdio>

#include "state.h"

namespace emulator {
Machine machine;

namespace {

std::string where(const Site& site) {
  const char* slash = strrchr(site.file, '/');
  return std::string(site.instruction) + " (" + (slash ? slash + 1 : site.file) + ":" + std::to_string(site.line) + ")";
}

void wait_for(Wait what, unsigned generation, const Site& site) {
  Thread& thread = *machine.running;
  thread.wait = what;
  thread.generation = generation;
  thread.site = site;
  thread.fibre.leave(false);
  thread.wait = Wait::NOTHING;
}

bool at(const Site& site, const char* place) {  // "file:line"; none is nowhere
  if (!place) return false;
  const char* slash = strrchr(site.file, '/');
  const char* name = slash ? slash + 1 : site.file;
  size_t length = strlen(name);
  return !strncmp(place, name, length) && place[length] == ':' && atoi(place + length + 1) == site.line;
}

}  // namespace

std::string state_of(const Thread& thread) {
  std::string name = "thread " + std::to_string(thread.number);
  return thread.ended ? name + " has ended" : name + " waits at " + where(thread.site);
}

bool same(const Site& a, const Site& b) {
  return a.line == b.line && !strcmp(a.instruction, b.instruction) && !strcmp(a.file, b.file);
}

void note(const std::string& error) {
  std::string block = std::to_string(machine.block.x) + ", " + std::to_string(machine.block.y) + ", " +
                      std::to_string(machine.block.z);
  std::string thread = machine.running ? ", thread " + std::to_string(machine.running->number) : "";
  machine.error = std::string(machine.kernel->name) + ", block (" + block + ")" + thread + ": " + error;
}

Index thread_index() { return {(unsigned)machine.running->number, 0, 0}; }
Index block_index() { return machine.block; }
Index block_size() { return {(unsigned)machine.threads.size(), 1, 1}; }
Index grid_size() { return machine.grid; }
unsigned char* shared_memory() { return machine.shared->bytes; }

void meet(const Site& site, void* operands, Operation operation) {
  int number = machine.running->number;
  Warp& warp = machine.warps[number / 32];
  warp.operands[number % 32] = operands;
  if (warp.arrived == 0) {
    warp.first = number;
  } else if (const Thread& first = *machine.threads[warp.first]; !same(site, first.site)) {
    fail(site, "the lanes of a warp diverge, %s", state_of(first).c_str());
  }
  machine.running->site = site;
  if (++warp.arrived < 32) return wait_for(Wait::WARP, warp.generation, site);
  operation(warp.operands);
  warp.arrived = 0;
  ++warp.generation;
}

void barrier(const Site& site) {
  if (at(site, machine.settings.skipped_barrier)) return;
  char& tag = machine.at_barriers[machine.barrier_generation % 2];
  release(tag);
  if (machine.at_barrier == 0) {
    machine.first_at_barrier = machine.running->number;
  } else if (const Thread& first = *machine.threads[machine.first_at_barrier]; !same(site, first.site)) {
    fail(site, "the threads of a block are at different barriers, %s", state_of(first).c_str());
  }
  machine.running->site = site;
  if (++machine.at_barrier < (int)machine.threads.size()) {
    wait_for(Wait::BARRIER, machine.barrier_generation, site);
  } else {
    machine.at_barrier = 0;
    ++machine.barrier_generation;
  }
  acquire(tag);
}

void queue(const Site& site, const Copy& copy) {
  for (const PendingCopy& other : machine.running->copies) {
    const char *mine = (const char*)copy.shared, *its = (const char*)other.copy.shared;
    if (mine < its + other.copy.bytes && its < mine + copy.bytes)
      fail(site, "a copy to the same bytes is under way; which lands last is open");
  }
  Unseen unseen;
  machine.running->copies.push_back({copy, machine.running->groups});
}
void commit() { ++machine.running->groups; }
bool next_landing(const Site& site, int groups, Copy& copy) {
  Unseen unseen;
  auto& copies = machine.running->copies;
  if (at(site, machine.settings.lax_wait)) ++groups;
  if (copies.empty() || copies.front().group >= machine.running->groups - groups) return false;
  copy = copies.front().copy;
  copies.pop_front();
  return true;
}
bool copies_are_lazy() { return machine.settings.lazy; }

void require_aligned(const Site& site, const void* pointer, int bytes) {
  if ((uintptr_t)pointer % bytes)
    fail(site, "the address %p is not a multiple of %d", pointer, bytes);
}
void require_shared(const Site& site, const void* pointer, int bytes) {
  const SharedMemory& shared = *machine.shared;
  ptrdiff_t offset = (const unsigned char*)pointer - shared.bytes;
  if (offset < 0 || offset + bytes > (ptrdiff_t)shared.size)
    fail(site, "bytes %td to %td are outside of the block's %zu bytes of shared memory", offset, offset + bytes - 1,
         shared.size);
  require_aligned(site, pointer, bytes);
}

void stop(const std::string& error) {
  {
    Unseen unseen;
    note(error);
  }
  machine.running->fibre.leave(true);
  abort();  // nothing enters this thread again
}

void fail(const Site& site, const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  stop(where(site) + ": " + text);
}

int running_thread() { return machine.running ? machine.running->number : -1; }
bool is_shared(const void* pointer) {
  const SharedMemory& shared = *machine.shared;
  return (pointer >= shared.bytes && pointer < shared.bytes + shared.size) ||
         (pointer >= __start_emulated_shared && pointer < __stop_emulated_shared);
}
bool is_private(const void* pointer) {
  return machine.running->fibre.holds(pointer) || (pointer >= __ehdr_start && pointer < _end);
}

const char* library_start() { return __ehdr_start; }

}  // namespace emulator
