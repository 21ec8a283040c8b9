// Tiny kernels that show what the emulator computes, and faults that it must find.
#pragma once
#include "isa.cuh"

struct ProbeArguments {
  const void* in;
  void* out;
  i32 count, choice;
};

// ---- numbers: element by element ----

enum Number { FROM_HALF, TO_HALF, FROM_BFLOAT, TO_BFLOAT, TO_INT, FROM_INT, EXP2 };

KERNEL __launch_bounds__(64) probe_number(const ProbeArguments p) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= p.count) return;
  const u16* halves = (const u16*)p.in;
  const float* floats = (const float*)p.in;
  switch (p.choice) {
    case FROM_HALF: return store_global((float*)p.out + i, half_to_float(load_global(halves + i)));
    case TO_HALF: return store_global((u16*)p.out + i, float_to_half(load_global(floats + i)));
    case FROM_BFLOAT: return store_global((float*)p.out + i, bfloat_to_float(load_global(halves + i)));
    case TO_BFLOAT: return store_global((u16*)p.out + i, float_to_bfloat(load_global(floats + i)));
    case TO_INT: return store_global((i32*)p.out + i, float_to_int(load_global(floats + i)));
    case FROM_INT: return store_global((float*)p.out + i, int_to_float(load_global((const i32*)p.in + i)));
    case EXP2: return store_global((float*)p.out + i, exp2_fast(load_global(floats + i)));
  }
}

KERNEL __launch_bounds__(32) probe_pick_bytes(const ProbeArguments p) {  // [lanes, 3]: a, b, selector
  const u32* in = (const u32*)p.in + threadIdx.x * 3;
  store_global((u32*)p.out + threadIdx.x, pick_bytes(load_global(in), load_global(in + 1), load_global(in + 2)));
}

KERNEL __launch_bounds__(64) probe_shuffle(const ProbeArguments p) {  // with lane ^ choice, then with lane choice
  const float mine = load_global((const float*)p.in + threadIdx.x);
  store_global((float*)p.out + threadIdx.x, shuffle_xor(mine, p.choice));
  store_global((float*)p.out + blockDim.x + threadIdx.x, shuffle(mine, p.choice));
}

// ---- fragments: a warp's registers, as they come and go ----

struct Fragments {  // of each lane
  u32 a[4], b[2];
};

#define PROBE_MMA(NAME, NUMBER, MULTIPLY)                                                     \
  KERNEL __launch_bounds__(32) NAME(const ProbeArguments p) {                                 \
    const Fragments& in = ((const Fragments*)p.in)[threadIdx.x];                              \
    NUMBER* out = (NUMBER*)p.out + threadIdx.x * 4;                                           \
    NUMBER d[4] = {out[0], out[1], out[2], out[3]};                                           \
    MULTIPLY(d, in.a, in.b[0], in.b[1]);                                                      \
    for (int i = 0; i < 4; ++i) out[i] = d[i];                                                \
  }
PROBE_MMA(probe_mma_s8, i32, mma_s8)
PROBE_MMA(probe_mma_u8, i32, mma_u8)
PROBE_MMA(probe_mma_half, float, mma_float<FLOAT16>)
PROBE_MMA(probe_mma_bfloat, float, mma_float<BFLOAT16>)

KERNEL __launch_bounds__(32) probe_matrices(const ProbeArguments p) {  // 32 rows of 16 bytes to 4 registers a lane
  SHARED_MEMORY(memory);
  copy_async16(shared_pointer(memory + threadIdx.x * 16), (const Vector4*)p.in + threadIdx.x, true);
  copy_commit();
  copy_wait<0>();
  block_barrier();
  u32 r[4];
  if (p.choice) load_matrices_transposed(r, shared_pointer(memory + threadIdx.x * 16));
  else load_matrices(r, shared_pointer(memory + threadIdx.x * 16));
  store_global((Vector4*)p.out + threadIdx.x, Vector4{r[0], r[1], r[2], r[3]});
}

// ---- a pipeline without a fault: three stages of copies, which the other warp reads ----

constexpr int PIPELINE_THREADS = 64, PIPELINE_STAGES = 3;

KERNEL __launch_bounds__(PIPELINE_THREADS) probe_pipeline(const ProbeArguments p) {  // [count, 64, 16 bytes] to [64]
  SHARED_MEMORY(memory);
  __shared__ u32 total[PIPELINE_THREADS];
  auto load = [&](int tile) {
    if (tile <= p.count) {  // the last one is zeros
      const bool valid = tile < p.count;
      copy_async16(shared_pointer(memory + (tile % PIPELINE_STAGES * PIPELINE_THREADS + threadIdx.x) * 16),
                   (const Vector4*)p.in + (valid ? tile * PIPELINE_THREADS + threadIdx.x : 0), valid);
    }
    copy_commit();
  };
  for (int tile = 0; tile < PIPELINE_STAGES - 1; ++tile) load(tile);
  u32 sum = 0;
  for (int tile = 0; tile <= p.count; ++tile) {
    copy_wait<PIPELINE_STAGES - 2>();
    block_barrier();  // pipeline: tile
    load(tile + PIPELINE_STAGES - 1);
    const int other = threadIdx.x ^ 32;
    const Vector4 four = *(const Vector4*)(memory + (tile % PIPELINE_STAGES * PIPELINE_THREADS + other) * 16);
    sum = sum * 31 + (four.x ^ four.y ^ four.z ^ four.w);
  }
  total[threadIdx.x] = sum;
  block_barrier();  // pipeline: total
  store_global((u32*)p.out + blockIdx.x * PIPELINE_THREADS + threadIdx.x, total[threadIdx.x ^ 32]);
}

// ---- access patterns ----

KERNEL __launch_bounds__(32) probe_rows(const ProbeArguments p) {  // rows of 64 bytes, read eight at once
  SHARED_MEMORY(memory);
#ifdef FAULT_UNSWIZZLED
  auto at = [](int row, int piece) { return row * 4 + piece; };
#else
  auto at = [](int row, int piece) { return row * 4 + (piece ^ (row >> 1 & 3)); };
#endif
  for (int id = threadIdx.x; id < 32 * 4; id += 32)
    *(Vector4*)(memory + at(id / 4, id % 4) * 16) = load_global((const Vector4*)p.in + id);
  block_barrier();
  u32 r[4];
  load_matrices(r, shared_pointer(memory + at(threadIdx.x, 1) * 16));  // eight rows at once
  store_global((Vector4*)p.out + threadIdx.x, Vector4{r[0], r[1], r[2], r[3]});
}

KERNEL __launch_bounds__(32) probe_strides(const ProbeArguments p) {  // elements `choice` apart, in both memories
  SHARED_MEMORY(memory);
  float* column = (float*)memory;
  const float mine = load_global((const float*)p.in + threadIdx.x * p.choice);  // strided load
  column[threadIdx.x * p.choice] = mine;                                        // strided shared store
  store_global((float*)p.out + threadIdx.x, column[0]);                         // coalesced store
}

// ---- faults, one a launch ----

enum Fault {
  SHARED_OVERRUN,
  STATIC_SHARED_OVERRUN,
  GLOBAL_OVERRUN_READ,
  GLOBAL_OVERRUN_WRITE,
  MISALIGNED_LOAD,
  MISALIGNED_SHARED_COPY,
  MISALIGNED_GLOBAL_COPY,
  COPY_OUTSIDE_SHARED,
  ROW_OUTSIDE_SHARED,
  COPY_LEFT_UNDER_WAY,
  COPIES_OVERLAP,
  DIVERGENT_LANES,
  LANES_AT_BARRIER,
  HALF_A_BARRIER,
  TWO_BARRIERS,
  BAD_SELECTOR,
  BAD_LANE,
  RACE_IN_WARP,
};

KERNEL __launch_bounds__(64) probe_fault(const ProbeArguments p) {  // `in` and `out` have 16 bytes a thread
  SHARED_MEMORY(memory);                                            // 64 bytes
  __shared__ u32 word[64];
  const int thread = threadIdx.x;
  const bool first = thread == 0;
  word[thread] = 0;
  u32 r[4] = {0, 0, 0, 0};
  switch (p.choice) {
    case SHARED_OVERRUN: if (first) memory[p.count] = 1; break;
    case STATIC_SHARED_OVERRUN: if (first) word[p.count] = 1; break;
    case GLOBAL_OVERRUN_READ: r[0] = load_global((const u8*)p.in + thread + p.count); break;
    case GLOBAL_OVERRUN_WRITE: store_global((u8*)p.out + thread + p.count, (u8)1); break;
    case MISALIGNED_LOAD: r[0] = load_global((const u32*)((const u8*)p.in + 2)); break;
    case MISALIGNED_SHARED_COPY: copy_async16(shared_pointer(memory + 8), p.in, true); break;
    case MISALIGNED_GLOBAL_COPY: copy_async4(shared_pointer(memory), (const u8*)p.in + 2, true); break;
    case COPY_OUTSIDE_SHARED: copy_async16(shared_pointer(memory + 64), p.in, true); break;
    case ROW_OUTSIDE_SHARED: load_matrices(r, shared_pointer(memory + thread * 16)); break;
    case COPY_LEFT_UNDER_WAY: copy_async16(shared_pointer(memory), p.in, true); copy_commit(); break;
    case COPIES_OVERLAP:
      copy_async16(shared_pointer(memory), p.in, true);
      copy_commit();
      copy_async4(shared_pointer(memory + 12), p.in, true);
      break;
    case DIVERGENT_LANES:
      if (thread % 2) r[0] = shuffle_xor(r[0], 2);
      else load_matrices(r, shared_pointer(memory));
      break;
    case LANES_AT_BARRIER:
      if (thread % 2) r[0] = shuffle_xor(r[0], 2);
      else block_barrier();
      break;
    case HALF_A_BARRIER: if (thread < 32) block_barrier(); break;
    case TWO_BARRIERS:
      if (thread < 32) block_barrier();
      else block_barrier();
      break;
    case BAD_SELECTOR: r[0] = pick_bytes(r[0], r[1], 0x3218); break;
    case BAD_LANE: r[0] = shuffle(r[0], 32 + thread % 32); break;
    case RACE_IN_WARP: word[0] = thread; r[0] = shuffle_xor(r[0], 1) + word[0]; break;
  }
  store_global((u32*)p.out + thread, r[0] + r[1] + r[2] + r[3]);
}
