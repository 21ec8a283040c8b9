// Stacks of their own for functions that hand control to and fro (x86-64, System V), with what sanitizers must be told.
#pragma once
#include <sys/mman.h>

#include <cstddef>

#ifdef EMULATOR_UNDER_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
constexpr bool UNDER_ADDRESS_SANITIZER = true;
#else
constexpr bool UNDER_ADDRESS_SANITIZER = false;
#endif
#ifdef EMULATOR_UNDER_THREAD_SANITIZER
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* tag);
void __tsan_release(void* tag);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

// Saves the registers that a call keeps, and goes on where `to` was saved.
asm(R"(
.text
.local emulator_switch
.type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch, . - emulator_switch
)");
extern "C" void emulator_switch(void** saved, void* to);

namespace emulator {

#ifdef EMULATOR_UNDER_THREAD_SANITIZER
inline void release(char& tag) { __tsan_release(&tag); }
inline void acquire(char& tag) { __tsan_acquire(&tag); }
struct Unseen {  // ThreadSanitizer sees allocations even of code that isn't instrumented
  Unseen() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unseen() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
};
#else
inline void release(char&) {}
inline void acquire(char&) {}
struct Unseen {
  Unseen() {}
  ~Unseen() {}
};
#endif

class Fibre {
 public:
  static constexpr size_t STACK = 256 * 1024, GUARD = 4096;

  Fibre() : memory((char*)mmap(nullptr, STACK + GUARD, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {
    mprotect(memory, GUARD, PROT_NONE);  // a kernel that overruns its stack stops here
  }
  Fibre(const Fibre&) = delete;
  ~Fibre() {
#ifdef EMULATOR_UNDER_THREAD_SANITIZER
    if (identity) __tsan_destroy_fiber(identity);
#endif
    munmap(memory, STACK + GUARD);
  }

  bool holds(const void* pointer) const {
    return (const char*)pointer >= memory && (const char*)pointer < memory + GUARD + STACK;
  }

  void start(void (*entry)()) {  // `entry` calls `arrived` first, and ends with `leave(true)`
    void** top = (void**)(memory + GUARD + STACK);
    *--top = nullptr;  // where `entry` would return to
    *--top = (void*)entry;
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    saved = top;
#ifdef EMULATOR_UNDER_ADDRESS_SANITIZER
    __asan_unpoison_memory_region(memory + GUARD, STACK);
#endif
#ifdef EMULATOR_UNDER_THREAD_SANITIZER
    if (!identity) identity = __tsan_create_fiber(0);  // kept: it takes long
#endif
  }

  void enter() {
#ifdef EMULATOR_UNDER_ADDRESS_SANITIZER
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, memory + GUARD, STACK);
#endif
#ifdef EMULATOR_UNDER_THREAD_SANITIZER
    starter = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(identity, 1);
#endif
    emulator_switch(&starter_saved, saved);
#ifdef EMULATOR_UNDER_ADDRESS_SANITIZER
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  }

  void arrived() {
#ifdef EMULATOR_UNDER_ADDRESS_SANITIZER
    __sanitizer_finish_switch_fiber(nullptr, &starter_stack, &starter_size);
#endif
  }

  void leave(bool for_good) {
#ifdef EMULATOR_UNDER_ADDRESS_SANITIZER
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack, starter_stack, starter_size);
#else
    (void)for_good;
#endif
#ifdef EMULATOR_UNDER_THREAD_SANITIZER
    __tsan_switch_to_fiber(starter, 1);
#endif
    emulator_switch(&saved, starter_saved);
#ifdef EMULATOR_UNDER_ADDRESS_SANITIZER
    __sanitizer_finish_switch_fiber(fake_stack, &starter_stack, &starter_size);
#endif
  }

 private:
  char* memory;
  void *saved = nullptr, *starter_saved = nullptr;
#ifdef EMULATOR_UNDER_ADDRESS_SANITIZER
  const void* starter_stack = nullptr;
  size_t starter_size = 0;
#endif
#ifdef EMULATOR_UNDER_THREAD_SANITIZER
  void *identity = nullptr, *starter = nullptr;
#endif
};

}  // namespace emulator
