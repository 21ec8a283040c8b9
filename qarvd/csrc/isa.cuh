// Instructions that C++ has no word for, one small function each: PTX here; for a run on the CPU a test tool
// (tests/kernels/emulator) puts lane-exact C++ in their place. Nothing else in this folder differs between the two.
#pragma once

typedef signed char i8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef int i32;
typedef unsigned u32;
typedef long long i64;
typedef unsigned long long u64;

constexpr float LOWEST = -1e30f;  // below every score

enum Type { FLOAT32 = 0, FLOAT16 = 1, BFLOAT16 = 2 };  // as in qarvd/ops/cuda/arguments.py

#ifdef QARVD_EMULATED
typedef unsigned char* SharedPointer;
static inline SharedPointer shared_pointer(const void* pointer) { return (unsigned char*)pointer; }
static inline SharedPointer pinned(SharedPointer pointer) { return pointer; }
#include "emulator.h"
#else

#define DEVICE __device__ __forceinline__
#define KERNEL extern "C" __global__ void
#define SHARED_MEMORY(name) extern __shared__ __align__(128) unsigned char name[]

struct __align__(16) Vector4 {
  u32 x, y, z, w;
};

// Shared memory is read and written through these where instructions want its own 32-bit addresses.
typedef u32 SharedPointer;
DEVICE SharedPointer shared_pointer(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

// The same pointer, opaque: what is added to it stays a constant in the instruction that reads there.
DEVICE SharedPointer pinned(SharedPointer pointer) {
  asm("" : "+r"(pointer));
  return pointer;
}

// Global memory is read and written through these, so that the emulator can count sectors.
template <class T>
DEVICE T load_global(const T* pointer) {
  return *pointer;
}
template <class T>
DEVICE void store_global(T* pointer, T value) {
  *pointer = value;
}

// 16 bytes (or 4) from global to shared memory, zeros where not `valid`; done once a wait says so.
DEVICE void copy_async16(SharedPointer shared, const void* global, bool valid) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
#else
  const Vector4 v = valid ? *(const Vector4*)global : Vector4{0, 0, 0, 0};
  asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(shared), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
#endif
}
DEVICE void copy_async4(SharedPointer shared, const void* global, bool valid) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared), "l"(global),
               "r"(valid ? 4 : 0)
               : "memory");
#else
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(shared), "r"(valid ? *(const u32*)global : 0) : "memory");
#endif
}
DEVICE void copy_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int GROUPS>  // waits until at most GROUPS of the newest groups are under way
DEVICE void copy_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
#endif
}

// Four 8 x 8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
DEVICE void load_matrices(u32 (&r)[4], SharedPointer row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}
DEVICE void load_matrices_transposed(u32 (&r)[4], SharedPointer row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

// d[16 x 8] += a[16 x 32] * b[32 x 8] of bytes; `a` signed or unsigned, `b` signed.
#define MMA_BYTES(NAME, TYPE)                                                                                        \
  DEVICE void NAME(i32(&d)[4], const u32(&a)[4], u32 b0, u32 b1) {                                                   \
    MMA_BYTES_BODY(TYPE)                                                                                             \
  }
#if __CUDA_ARCH__ >= 800
#define MMA_BYTES_BODY(TYPE)                                                                                         \
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32." TYPE                                                         \
               ".s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                                       \
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])                                                      \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
#define MMA_BYTES_STEP(TYPE, D0, D1, A, B)                                                                           \
  asm volatile("mma.sync.aligned.m8n8k16.row.col.s32." TYPE ".s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"                   \
               : "+r"(D0), "+r"(D1)                                                                                  \
               : "r"(A), "r"(B));
#define MMA_BYTES_BODY(TYPE)                                                                                         \
  MMA_BYTES_STEP(TYPE, d[0], d[1], a[0], b0)                                                                         \
  MMA_BYTES_STEP(TYPE, d[2], d[3], a[1], b0)                                                                         \
  MMA_BYTES_STEP(TYPE, d[0], d[1], a[2], b1)                                                                         \
  MMA_BYTES_STEP(TYPE, d[2], d[3], a[3], b1)
#endif
MMA_BYTES(mma_s8, "s8")
MMA_BYTES(mma_u8, "u8")

// d[16 x 8] += a[16 x 16] * b[16 x 8] of 16-bit floats, summed in float32.
template <Type TYPE>
DEVICE void mma_float(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
  if (TYPE == FLOAT16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
#else  // Turing multiplies no bfloat16, and is never asked to
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(b0));
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

// Four of the eight bytes of a (0-3) and b (4-7), one for each hexadecimal digit of `selector`, lowest first.
DEVICE u32 pick_bytes(u32 a, u32 b, u32 selector) { return __byte_perm(a, b, selector); }

// 2^x, 2 ulp; denormal results are 0.
DEVICE float exp2_fast(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

DEVICE float half_to_float(u16 x) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x));
  return r;
}
DEVICE u16 float_to_half(float x) {
  u16 r;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(x));
  return r;
}
DEVICE float bits_to_float(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 float_to_bits(float x) { return __float_as_uint(x); }
DEVICE float int_to_float(i32 x) { return __int2float_rn(x); }
DEVICE i32 float_to_int(float x) { return __float2int_rn(x); }
template <class T>
DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
template <class T>
DEVICE T shuffle(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
DEVICE void block_barrier() { __syncthreads(); }

#endif  // QARVD_EMULATED

DEVICE float bfloat_to_float(u16 x) { return bits_to_float((u32)x << 16); }
DEVICE u16 float_to_bfloat(float x) {  // round half to even; every NaN becomes one
  u32 bits = float_to_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return (u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
template <Type TYPE>
DEVICE u32 pack_floats(float low, float high) {  // two 16-bit floats in a register
#if !defined(QARVD_EMULATED) && __CUDA_ARCH__ >= 800
  u32 both;
  if (TYPE == FLOAT16) asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  else asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
#endif
  if (TYPE == FLOAT16) return float_to_half(low) | (u32)float_to_half(high) << 16;
  return float_to_bfloat(low) | (u32)float_to_bfloat(high) << 16;
}

DEVICE float load_float(const void* base, i64 index, int type) {
  if (type == FLOAT32) return load_global((const float*)base + index);
  u16 x = load_global((const u16*)base + index);
  return type == FLOAT16 ? half_to_float(x) : bfloat_to_float(x);
}
