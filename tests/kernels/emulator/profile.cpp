// How well the lanes of a warp access memory together, at each instruction of a kernel.
//
// The variant "profile" is compiled with -fsanitize=thread but linked with the functions below in place of that
// sanitizer's: the compiler calls one at each access to memory, through a pointer or not, named in isa.cuh or not.
#include "machine.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include <tuple>
#include <unordered_map>
#include <vector>

namespace emulator {
namespace {

struct Access {
  const char* code;  // the instruction
  int occurrence;    // how often this thread had run it before: lanes of one warp go together by this
  int lane;
  bool writes, shared;
  uintptr_t address;
  int bytes;
  auto key() const { return std::tie(code, occurrence, writes, shared, lane); }
};
struct Log {
  std::vector<Access> accesses;
  std::unordered_map<const char*, int> occurrences;
};
struct Total {
  unsigned long long requests = 0, transactions = 0, ideal = 0;
};
std::map<int, Log> logs;  // by thread
std::map<std::tuple<const char*, bool, bool>, Total> totals;

using Accesses = std::vector<Access>;

// Shared memory has 32 banks of 4 bytes. Accesses of 8 bytes are served for 16 lanes at a time, of 16 bytes for 8.
// A wavefront takes one word from each bank, so the bank with the most words says how many are needed.
void count_wavefronts(const Accesses& request, Total& total) {
  int lanes = 128 / std::max(request[0].bytes, 4);
  std::map<int, std::set<uintptr_t>> words;
  for (const Access& access : request)
    for (uintptr_t word = access.address / 4; word <= (access.address + access.bytes - 1) / 4; ++word)
      words[access.lane / lanes * 32 + word % 32].insert(word);
  std::map<int, size_t> wavefronts;
  for (auto& [bank, different] : words) {
    size_t& most = wavefronts[bank / 32];
    most = std::max(most, different.size());
  }
  for (auto& [part, most] : wavefronts) total.transactions += most;
  total.ideal += wavefronts.size();
}

// Global memory comes in sectors of 32 bytes; at best all that is wanted fills them.
void count_sectors(const Accesses& request, Total& total) {
  std::set<uintptr_t> bytes, sectors;
  for (const Access& access : request)
    for (int i = 0; i < access.bytes; ++i) bytes.insert(access.address + i);
  for (uintptr_t byte : bytes) sectors.insert(byte / 32);
  total.transactions += sectors.size();
  total.ideal += (bytes.size() + 31) / 32;
}

void count_request(const Accesses& request) {
  const Access& first = request[0];
  Total& total = totals[{first.code, first.writes, first.shared}];
  ++total.requests;
  first.shared ? count_wavefronts(request, total) : count_sectors(request, total);
}

[[maybe_unused]] void record(const void* address, int bytes, bool writes, const void* code) {
  int thread = running_thread();
  if (thread < 0 || is_private(address)) return;
  Log& log = logs[thread];
  for (int done = 0; done < bytes; done += 16) {  // no instruction takes more than 16 bytes
    int occurrence = log.occurrences[(const char*)code]++;
    log.accesses.push_back({(const char*)code, occurrence, thread % 32, writes, is_shared(address),
                            (uintptr_t)address + done, std::min(16, bytes - done)});
  }
}

}  // namespace

void record_block(int threads) {
  for (int warp = 0; warp < threads / 32; ++warp) {
    Accesses all;
    for (int lane = 0; lane < 32; ++lane) {
      auto& accesses = logs[warp * 32 + lane].accesses;
      all.insert(all.end(), accesses.begin(), accesses.end());
    }
    std::sort(all.begin(), all.end(), [](auto& a, auto& b) { return a.key() < b.key(); });
    Accesses request;
    for (const Access& access : all) {
      if (!request.empty() && (access.code != request[0].code || access.occurrence != request[0].occurrence ||
                               access.writes != request[0].writes || access.shared != request[0].shared)) {
        count_request(request);
        request.clear();
      }
      request.push_back(access);
    }
    if (!request.empty()) count_request(request);
  }
  forget_block();
}

void forget_block() { logs.clear(); }

}  // namespace emulator

// What was recorded since it was last taken: at most `capacity` rows; returns how many there are.
struct ProfileRow {
  unsigned long long code;  // offset of the instruction in the library, for addr2line
  int writes, shared;
  unsigned long long requests, transactions, ideal;
};
extern "C" int take_profile(ProfileRow* rows, int capacity) {
  int count = 0;
  for (auto& [key, total] : emulator::totals) {
    auto [code, writes, shared] = key;
    if (count < capacity)
      rows[count] = {(unsigned long long)(code - emulator::library_start()), writes, shared, total.requests, total.transactions, total.ideal};
    ++count;
  }
  if (count <= capacity) emulator::totals.clear();
  return count;
}

#ifdef EMULATOR_RECORDS
// A return address lies behind its call, maybe on the next line already: one byte less lies in it.
#define ACCESS(NAME, BYTES, WRITES) \
  extern "C" void __tsan_##NAME(void* address) { \
    emulator::record(address, BYTES, WRITES, (const char*)__builtin_return_address(0) - 1); \
  }
#define ACCESSES(BYTES) \
  ACCESS(read##BYTES, BYTES, false) \
  ACCESS(write##BYTES, BYTES, true) \
  ACCESS(unaligned_read##BYTES, BYTES, false) \
  ACCESS(unaligned_write##BYTES, BYTES, true)
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
extern "C" void __tsan_read_range(void* address, size_t bytes) {
  emulator::record(address, (int)bytes, false, (const char*)__builtin_return_address(0) - 1);
}
extern "C" void __tsan_write_range(void* address, size_t bytes) {
  emulator::record(address, (int)bytes, true, (const char*)__builtin_return_address(0) - 1);
}
extern "C" void __tsan_init() {}
#endif
