// The instructions of qarvd/csrc/isa.cuh in lane-exact C++ for one CPU core; machine.h says what they run on.
#pragma once
#include <cmath>

#include "machine.h"
#include "numbers.h"

#define DEVICE inline  // not forced: the compiler would take ten times as long under a sanitizer
#define KERNEL extern "C" emulator::Launched  // build.py finds kernels by this word in the preprocessed source
#define SHARED_MEMORY(name) unsigned char* const name = emulator::shared_memory()
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("emulated_shared")))  // blocks run one after another: one is enough

#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::block_index())
#define blockDim (emulator::block_size())
#define gridDim (emulator::grid_size())

namespace emulator {
using Launched = void;
}

// Forced into the kernel, so that a recorded access has its place in the kernel's source.
#define INSTRUCTION inline __attribute__((always_inline))

// Ends the parameters of an instruction: where a kernel uses it.
#define USED_AT const char *file = __builtin_FILE(), int line = __builtin_LINE()

// As on the GPU one access of 16 bytes, which the compiler mustn't take apart: then the recorder would see four.
struct alignas(16) Vector4 {
  u32 x, y, z, w;
  Vector4() = default;
  INSTRUCTION Vector4(u32 x, u32 y, u32 z, u32 w) : x(x), y(y), z(z), w(w) {}
  INSTRUCTION Vector4(const Vector4& other) { copy(other); }
  INSTRUCTION Vector4& operator=(const Vector4& other) {
    copy(other);
    return *this;
  }

 private:
  typedef u32 Whole __attribute__((vector_size(16), may_alias));
  INSTRUCTION void copy(const Vector4& other) {
    Whole whole = *(const Whole*)&other;
    asm("" : "+x"(whole));
    *(Whole*)this = whole;
  }
};

template <class T>
INSTRUCTION T load_global(const T* pointer) {
  return *pointer;
}
template <class T>
INSTRUCTION void store_global(T* pointer, T value) {
  *pointer = value;
}

INSTRUCTION void land(const emulator::Copy& copy) {
  if (copy.bytes == 16) {
    *(Vector4*)copy.shared = copy.global ? *(const Vector4*)copy.global : Vector4(0, 0, 0, 0);
  } else {
    *(u32*)copy.shared = copy.global ? *(const u32*)copy.global : 0;
  }
}
INSTRUCTION void copy_async(const emulator::Site& site, void* shared, const void* global, bool valid, int bytes) {
  emulator::require_shared(site, shared, bytes);
  emulator::require_aligned(site, global, bytes);
  emulator::Copy copy{shared, valid ? global : nullptr, bytes};
  emulator::queue(site, copy);
  if (!emulator::copies_are_lazy()) land(copy);
}
INSTRUCTION void copy_async16(void* shared, const void* global, bool valid, USED_AT) {
  copy_async({"copy_async16", file, line}, shared, global, valid, 16);
}
INSTRUCTION void copy_async4(void* shared, const void* global, bool valid, USED_AT) {
  copy_async({"copy_async4", file, line}, shared, global, valid, 4);
}
INSTRUCTION void copy_commit() { emulator::commit(); }
template <int GROUPS>
INSTRUCTION void copy_wait(USED_AT) {
  emulator::Copy copy;
  while (emulator::next_landing({"copy_wait", file, line}, GROUPS, copy)) {
    if (emulator::copies_are_lazy()) land(copy);
  }
}

INSTRUCTION void load_matrices_by(emulator::Operation spread, const emulator::Site& site, u32 (&r)[4], const void* row) {
  emulator::require_shared(site, row, 16);
  Vector4 mine = *(const Vector4*)row;
  emulator::Matrices matrices{{mine.x, mine.y, mine.z, mine.w}, {}};
  emulator::meet(site, &matrices, spread);
  for (int i = 0; i < 4; ++i) r[i] = matrices.result[i];
}
INSTRUCTION void load_matrices(u32 (&r)[4], const void* row, USED_AT) {
  load_matrices_by(emulator::spread_matrices, {"load_matrices", file, line}, r, row);
}
INSTRUCTION void load_matrices_transposed(u32 (&r)[4], const void* row, USED_AT) {
  load_matrices_by(emulator::spread_matrices_transposed, {"load_matrices_transposed", file, line}, r, row);
}

INSTRUCTION void mma_s8(i32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, USED_AT) {
  emulator::ByteProduct product{d, a, {b0, b1}};
  emulator::meet({"mma_s8", file, line}, &product, emulator::multiply_signed_bytes);
}
INSTRUCTION void mma_u8(i32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, USED_AT) {
  emulator::ByteProduct product{d, a, {b0, b1}};
  emulator::meet({"mma_u8", file, line}, &product, emulator::multiply_unsigned_bytes);
}
template <Type TYPE>
INSTRUCTION void mma_float(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, USED_AT) {
  static_assert(TYPE != FLOAT32, "tensor cores multiply 16-bit floats");
  emulator::FloatProduct product{d, a, {b0, b1}};
  emulator::meet({TYPE == FLOAT16 ? "mma_float<FLOAT16>" : "mma_float<BFLOAT16>", file, line}, &product,
                 TYPE == FLOAT16 ? emulator::multiply_halves : emulator::multiply_bfloats);
}

INSTRUCTION u32 pick_bytes(u32 a, u32 b, u32 selector, USED_AT) {
  if (selector & 0xffff8888u) emulator::fail({"pick_bytes", file, line}, "selector 0x%x has digits past 7", selector);
  unsigned long long bytes = (unsigned long long)b << 32 | a;
  u32 picked = 0;
  for (int i = 0; i < 4; ++i) picked |= (u32)(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return picked;
}

INSTRUCTION float exp2_fast(float x) {
  float power = exp2f(x);
  return power < 0x1p-126f ? 0.f : power;
}

INSTRUCTION float bits_to_float(u32 bits) { return emulator::from_bits(bits); }
INSTRUCTION u32 float_to_bits(float x) { return emulator::to_bits(x); }
INSTRUCTION float half_to_float(u16 x) { return emulator::from_half(x); }
INSTRUCTION u16 float_to_half(float x) { return emulator::to_half(x); }
INSTRUCTION float int_to_float(i32 x) { return (float)x; }
INSTRUCTION i32 float_to_int(float x) {  // rounds half to even; saturates; NaN becomes 0
  if (x != x) return 0;
  if (x >= 0x1p31f) return 0x7fffffff;
  if (x < -0x1p31f) return -0x7fffffff - 1;
  return (i32)rintf(x);
}

template <class T>
INSTRUCTION T shuffle_by(const emulator::Site& site, T value, int from) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "lanes exchange 4 or 8 bytes");
  if (from < 0 || from > 31) emulator::fail(site, "there is no lane %d", from);
  emulator::Shuffle shuffle{0, 0, from};
  memcpy(&shuffle.value, &value, sizeof(T));
  emulator::meet(site, &shuffle, emulator::exchange);
  memcpy(&value, &shuffle.result, sizeof(T));
  return value;
}
template <class T>
INSTRUCTION T shuffle_xor(T value, int mask, USED_AT) {
  return shuffle_by({"shuffle_xor", file, line}, value, (int)(threadIdx.x & 31) ^ mask);
}
template <class T>
INSTRUCTION T shuffle(T value, int lane, USED_AT) {
  return shuffle_by({"shuffle", file, line}, value, lane);
}
INSTRUCTION void block_barrier(USED_AT) { emulator::barrier({"block_barrier", file, line}); }

// CUDA has these without a header.
template <class T>
INSTRUCTION T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
INSTRUCTION T max(T a, T b) {
  return a < b ? b : a;
}
