// Attention of a chunk's queries to a quantized ring of older keys and values, and to a sink and a newest chunk in
// 16 bits. The meaning: kv_attention in qarvd/ops/reference.py; the softmax is online, in powers of two.
//
// Here: what a block holds, and what the two parts of its work, in attention_plain.cuh and attention_ring.cuh, share.
#pragma once
#include "activation.cuh"
#include "linear.cuh"

struct AttentionArguments {
  const void* query;             // [batch, heads, rows, HEAD_DIM] by its strides
  void* out;                     // by its strides
  const u8* codes[2];            // keys, values: [batch, heads, capacity, HEAD_DIM * BITS / 8]
  const float* scale[2];         // [batch, heads, capacity]
  const float* offset;           // [batch, heads, HEAD_DIM], what the ring's keys lack; or null
  const void* plain[2][2];       // (sink, newest) x (keys, values), [batch, heads, tokens[i], HEAD_DIM]; or null
  i64 query_stride[3], out_stride[3], plain_stride[2][2][3];  // of batch, head and token, in elements
  i32 heads, rows, length, capacity;
  i32 tokens[2];                 // of the sink and the newest chunk
  float log2e_over_root;         // log2(e) / sqrt(HEAD_DIM)
};

constexpr int ATTENTION_THREADS = 128;                   // four warps
constexpr int ROWS = 64;                                 // queries of a block, 16 for each warp
constexpr int KEYS = 64;                                 // of a tile; with 128, registers spill

template <int HEAD_DIM, Type TYPE, int BITS>
struct Attention {
  static constexpr int STEPS = HEAD_DIM / 32;            // of the integer product with the keys
  static constexpr int KEY_LOADS = STEPS * BITS / 8;     // of four matrices, for 16 keys
  static constexpr int RING_PIECES = HEAD_DIM * BITS / 8 / 16, PLAIN_PIECES = HEAD_DIM * 2 / 16;
  static constexpr int RING_BYTES = KEYS * RING_PIECES * 16, PLAIN_BYTES = KEYS * PLAIN_PIECES * 16;
  static constexpr int BUFFER_BYTES = RING_BYTES > PLAIN_BYTES ? RING_BYTES : PLAIN_BYTES;
  static constexpr int QUERY_STEPS = HEAD_DIM / 16;      // of the product of floats; of two bytes, twice as wide
  static constexpr int QUERY_BYTES = QUERY_STEPS * ATTENTION_THREADS * 16;
  static constexpr int SHARED_BYTES = 2 * BUFFER_BYTES + 2 * KEYS * 4 + QUERY_BYTES;

  const AttentionArguments& p;
  SharedPointer shared;                                  // two buffers, for keys and values
  float* scales;                                         // [2][KEYS]: keys, values
  Vector4* query;                                        // [QUERY_STEPS][threads]: each thread's operands
  int lane;
  float out[HEAD_DIM / 8][4], most[2], total[2];         // running maximum (in powers of two) and this thread's sum

  DEVICE Attention(const AttentionArguments& arguments, unsigned char* memory)
      : p(arguments), shared(shared_pointer(memory)) {
    scales = (float*)(memory + 2 * BUFFER_BYTES);
    query = (Vector4*)(scales + 2 * KEYS) + threadIdx.x;
    lane = threadIdx.x & 31;
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      most[part] = LOWEST;
      total[part] = 0.f;
    }
#pragma unroll
    for (int j = 0; j < HEAD_DIM / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) out[j][e] = 0.f;
  }

  DEVICE int row(int part) const {                       // the two queries of this thread
    return blockIdx.x * ROWS + (threadIdx.x >> 5) * 16 + part * 8 + (lane >> 2);
  }
  DEVICE i64 line() const { return (i64)blockIdx.z * p.heads + blockIdx.y; }
  DEVICE static i64 place(const i64 (&stride)[3], i64 token) {  // of a token of this block's batch and head
    return blockIdx.z * stride[0] + blockIdx.y * stride[1] + token * stride[2];
  }
  DEVICE SharedPointer buffer(int which) const { return shared + which * BUFFER_BYTES; }

  DEVICE const u16* query_row(int part) const {
    return (const u16*)p.query + place(p.query_stride, row(part) < p.rows ? row(part) : p.rows - 1);
  }

  // Registers are dearer than shared memory: each thread keeps its operands there, and fetches them for every tile.
  template <int COUNT>
  DEVICE void keep(const u32 (&a)[COUNT][4], int first) {
#pragma unroll
    for (int k = 0; k < COUNT; ++k)
      query[(first + k) * ATTENTION_THREADS] = Vector4{a[k][0], a[k][1], a[k][2], a[k][3]};
  }
  template <int COUNT>
  DEVICE void fetch(u32 (&a)[COUNT][4], int first) {
#pragma unroll
    for (int k = 0; k < COUNT; ++k) {
      const Vector4 four = query[(first + k) * ATTENTION_THREADS];
      a[k][0] = four.x, a[k][1] = four.y, a[k][2] = four.z, a[k][3] = four.w;
    }
  }

  // A new running maximum; what was summed so far is scaled to it.
  DEVICE void raise(const float (&found)[2]) {
    float shrink[2];
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      float top = fmaxf(found[part], shuffle_xor(found[part], 1));
      top = fmaxf(most[part], fmaxf(top, shuffle_xor(top, 2)));
      shrink[part] = exp2_fast(most[part] - top);
      most[part] = top;
      total[part] *= shrink[part];
    }
    if (shrink[0] != 1.f || shrink[1] != 1.f) {
#pragma unroll
      for (int j = 0; j < HEAD_DIM / 8; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) out[j][e] *= shrink[e >> 1];
    }
  }

  // attention_plain.cuh: the sink and the newest chunk, in 16-bit floats.
  DEVICE void load_plain(int segment, int which, int first);
  DEVICE void load_query(float (&lacking)[2]);
  DEVICE void plain(int segment);

  // attention_ring.cuh: the ring, in integers.
  DEVICE void load_ring(int which, int first);
  DEVICE void quantize_query(float (&unit)[2]);
  DEVICE void key_rows(SharedPointer (&rows)[KEY_LOADS]);
  DEVICE void key_operands(u32 (&b)[2][STEPS][2], const SharedPointer (&rows)[KEY_LOADS], int first);
  DEVICE void value_operands(u32 (&even)[KEYS / 32][2], u32 (&odd)[KEYS / 32][2], int piece, bool high_half);
  DEVICE void ring_tile(const float (&unit)[2], int first);
  DEVICE void ring();

  // A pair of 8-wide tiles has its 16 channels in order after `plain`; the ring wants even channels in the first tile
  // and odd ones in the second, so that a thread has four neighbours.
  DEVICE void interleave() {
    const int low = (lane & 28) | (lane & 1) << 1;       // has channels 4 t and 4 t + 1 of this thread's four
    const bool second = lane & 2;
#pragma unroll
    for (int j = 0; j < HEAD_DIM / 8; j += 2)
#pragma unroll
      for (int part = 0; part < 4; part += 2) {
        float four[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float from_first = shuffle(out[j][part + (e & 1)], low + (e >> 1));
          const float from_second = shuffle(out[j + 1][part + (e & 1)], low + (e >> 1));
          four[e] = second ? from_second : from_first;
        }
        out[j][part] = four[0], out[j + 1][part] = four[1], out[j][part + 1] = four[2], out[j + 1][part + 1] = four[3];
      }
  }

  DEVICE void write() {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      float all = total[part] + shuffle_xor(total[part], 1);
      all += shuffle_xor(all, 2);
      const float inverse = all == 0.f ? 0.f : 1.f / all;  // nothing to attend to gives zeros; NaN stays NaN
      if (row(part) >= p.rows) continue;
      u16* to = (u16*)p.out + place(p.out_stride, row(part));
#pragma unroll
      for (int j = 0; j < HEAD_DIM / 8; j += 2) {
        const u32 low = pack_floats<TYPE>(out[j][part * 2] * inverse, out[j + 1][part * 2] * inverse);
        const u32 high = pack_floats<TYPE>(out[j][part * 2 + 1] * inverse, out[j + 1][part * 2 + 1] * inverse);
        store_global((u64*)(to + j * 8 + (lane & 3) * 4), (u64)high << 32 | low);
      }
    }
  }

  DEVICE static float to_float(u16 x) { return TYPE == FLOAT16 ? half_to_float(x) : bfloat_to_float(x); }

  // grid: rows / ROWS, heads, batch
  DEVICE void run() {
#pragma unroll 1
    for (int segment = 0; segment < 2; ++segment) plain(segment);
    interleave();
    ring();
    write();
  }
};
