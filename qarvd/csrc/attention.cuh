// Attention of a chunk's queries to a quantized ring of older keys and values, and to a sink and a newest chunk in
// 16 bits. The meaning: kv_attention in qarvd/ops/reference.py; the softmax is online, in powers of two.
//
// Codes are multiplied as they lie in memory. Queries are 16-bit integers in two bytes (256 * high + low), and so are
// the softmax's weights times the value scales; both products run once for each byte, into the same integers, which are
// shifted by 8 in between.
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
constexpr float QUERY_LIMIT = 32512.f;                   // 256 * 127
constexpr float INTEGER = 8388608.f;                     // 2^23: x + INTEGER has round(x) in its low bits

template <int HEAD_DIM, Type TYPE, int BITS>
struct Attention {
  static constexpr int STEPS = HEAD_DIM / 32;            // of the integer product with the keys
  static constexpr int KEY_LOADS = STEPS * BITS / 8;     // of four matrices, for 16 keys
  static constexpr int RING_PIECES = HEAD_DIM * BITS / 8 / 16, PLAIN_PIECES = HEAD_DIM * 2 / 16;
  static constexpr int RING_BYTES = KEYS * RING_PIECES * 16, PLAIN_BYTES = KEYS * PLAIN_PIECES * 16;
  static constexpr int BUFFER_BYTES = RING_BYTES > PLAIN_BYTES ? RING_BYTES : PLAIN_BYTES;
  static constexpr int QUERY_STEPS = HEAD_DIM / 16;      // of the product of floats; of integers, twice as wide, two bytes
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
    for (int k = 0; k < COUNT; ++k) query[(first + k) * ATTENTION_THREADS] = Vector4{a[k][0], a[k][1], a[k][2], a[k][3]};
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

  // ---- the sink and the newest chunk, in 16-bit floats ----

  // `first` may lie behind the last key: what is not there becomes zeros, and no address is read.
  DEVICE void load_plain(int segment, int which, int first) {
    constexpr int APART = ATTENTION_THREADS / PLAIN_PIECES;  // keys from one copy of a thread to its next
    const i64(&stride)[3] = p.plain_stride[segment][which];
    const int key = threadIdx.x / PLAIN_PIECES, piece = threadIdx.x % PLAIN_PIECES;
    const u16* from = (const u16*)p.plain[segment][which] + place(stride, first + key) + piece * 8;
#pragma unroll
    for (int i = 0; i < KEYS / APART; ++i, from += APART * stride[2])
      copy_async16(buffer(which) + swizzle<PLAIN_PIECES, false>(key + i * APART, piece) * 16, from,
                   first + key + i * APART < p.tokens[segment]);
    copy_commit();
  }

  // The queries as they are, and their product with what the ring's keys lack.
  DEVICE void load_query(float (&lacking)[2]) {
    u32 q[QUERY_STEPS][4];
    lacking[0] = lacking[1] = 0.f;
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const u16* from = query_row(part);
#pragma unroll
      for (int k = 0; k < HEAD_DIM / 8; ++k) {
        const int d = k * 8 + (lane & 3) * 2;
        const u32 two = load_global((const u32*)(from + d));
        q[k / 2][(k & 1) * 2 + part] = two;
        if (p.offset) {
          const float* offset = p.offset + line() * HEAD_DIM + d;
          lacking[part] += to_float((u16)two) * load_global(offset) + to_float((u16)(two >> 16)) * load_global(offset + 1);
        }
      }
      lacking[part] += shuffle_xor(lacking[part], 1);
      lacking[part] += shuffle_xor(lacking[part], 2);
      lacking[part] *= p.log2e_over_root;
    }
    keep(q, 0);
  }

  DEVICE void plain(int segment) {
    const int tokens = p.tokens[segment];
    if (!tokens) return;
    float lacking[2];
    load_query(lacking);
    load_plain(segment, 0, 0);
    load_plain(segment, 1, 0);
#pragma unroll 1
    for (int first = 0; first < tokens; first += KEYS) {
      float score[KEYS / 8][4];
      u32 q[QUERY_STEPS][4];
      fetch(q, 0);
      copy_wait<1>();
      block_barrier();
#pragma unroll
      for (int j = 0; j < KEYS / 8; j += 2) {
#pragma unroll
        for (int e = 0; e < 4; ++e) score[j][e] = score[j + 1][e] = 0.f;
#pragma unroll
        for (int k = 0; k < QUERY_STEPS; ++k) {
          u32 b[4];
          const int key = (lane >> 4) * 8 + (lane & 7), piece = k * 2 + (lane >> 3 & 1);
          load_matrices(b, buffer(0) + (j * 8 * PLAIN_PIECES + swizzle<PLAIN_PIECES, false>(key, piece)) * 16);
          mma_float<TYPE>(score[j], q[k], b[0], b[1]);
          mma_float<TYPE>(score[j + 1], q[k], b[2], b[3]);
        }
      }
      block_barrier();
      load_plain(segment, 0, first + KEYS);

      float found[2] = {LOWEST, LOWEST};
#pragma unroll
      for (int j = 0; j < KEYS / 8; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          score[j][e] = fmaf(score[j][e], p.log2e_over_root, -lacking[e >> 1]);
        }
      if (first + KEYS > tokens) {                 // the last tile
#pragma unroll
        for (int j = 0; j < KEYS / 8; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            if (first + j * 8 + (lane & 3) * 2 + (e & 1) >= tokens) score[j][e] = LOWEST;
      }
#pragma unroll
      for (int j = 0; j < KEYS / 8; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) found[e >> 1] = fmaxf(found[e >> 1], score[j][e]);
      raise(found);
      u32 weight[KEYS / 8][2];
#pragma unroll
      for (int j = 0; j < KEYS / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          score[j][e] = exp2_fast(score[j][e] - most[e >> 1]);
          total[e >> 1] += score[j][e];
        }
        weight[j][0] = pack_floats<TYPE>(score[j][0], score[j][1]);
        weight[j][1] = pack_floats<TYPE>(score[j][2], score[j][3]);
      }
      copy_wait<1>();
      block_barrier();
#pragma unroll
      for (int k = 0; k < KEYS / 16; ++k) {
        const u32 a[4] = {weight[2 * k][0], weight[2 * k][1], weight[2 * k + 1][0], weight[2 * k + 1][1]};
#pragma unroll
        for (int j = 0; j < HEAD_DIM / 8; j += 2) {
          u32 b[4];
          const int at = k * 16 * PLAIN_PIECES + swizzle<PLAIN_PIECES, false>(lane & 15, j + (lane >> 4));
          load_matrices_transposed(b, buffer(1) + at * 16);
          mma_float<TYPE>(out[j], a, b[0], b[1]);
          mma_float<TYPE>(out[j + 1], a, b[2], b[3]);
        }
      }
      block_barrier();
      load_plain(segment, 1, first + KEYS);
    }
    copy_wait<0>();
    block_barrier();
  }

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

  // ---- the ring, in integers ----

  DEVICE void load_ring(int which, int first) {
    constexpr int APART = ATTENTION_THREADS / RING_PIECES;
    const int key = threadIdx.x / RING_PIECES, piece = threadIdx.x % RING_PIECES;
    const u8* from = p.codes[which] + ((line() * p.capacity + first + key) * RING_PIECES + piece) * 16;
#pragma unroll
    for (int i = 0; i < KEYS / APART; ++i)
      copy_async16(buffer(which) + swizzle<RING_PIECES, true>(key + i * APART, piece) * 16, from + i * ATTENTION_THREADS * 16,
                   first + key + i * APART < p.length);
    if (threadIdx.x < KEYS)
      copy_async4(shared + 2 * BUFFER_BYTES + (which * KEYS + threadIdx.x) * 4, p.scale[which] + line() * p.capacity + first + threadIdx.x,
                  first + (int)threadIdx.x < p.length);
    copy_commit();
  }

  // The two bytes of every query, as operands of the integer product, and what a unit of it is worth.
  DEVICE void quantize_query(float (&unit)[2]) {
    u32 high[STEPS][4], low[STEPS][4];
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const u16* from = query_row(part);
      u32 most_bits = 0;
#pragma unroll
      for (int d = 0; d < HEAD_DIM / 16; ++d) {
        const u64 four = load_global((const u64*)(from + d * 16 + (lane & 3) * 4));
#pragma unroll
        for (int e = 0; e < 4; ++e) most_bits = larger(most_bits, magnitude(to_float((u16)(four >> 16 * e))));
      }
      most_bits = larger(most_bits, shuffle_xor(most_bits, 1));
      most_bits = larger(most_bits, shuffle_xor(most_bits, 2));
      const float scale = scale_of(bits_to_float(most_bits), 1.f / QUERY_LIMIT), inverse = 1.f / scale;
#pragma unroll
      for (int d = 0; d < HEAD_DIM / 16; ++d) {
        const u64 four = load_global((const u64*)(from + d * 16 + (lane & 3) * 4));
        u32 packed_high = 0, packed_low = 0;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const i32 code = code_of(to_float((u16)(four >> 16 * e)), inverse, (i32)QUERY_LIMIT), byte = (code + 128) >> 8;
          packed_high |= (u32)(u8)byte << 8 * e;
          packed_low |= (u32)(u8)(code - byte * 256) << 8 * e;
        }
        high[d / 2][(d & 1) * 2 + part] = packed_high;
        low[d / 2][(d & 1) * 2 + part] = packed_low;
      }
      unit[part] = scale * p.log2e_over_root * (BITS == 8 ? 1.f : 1.f / 16.f);
    }
    keep(high, 0);
    keep(low, STEPS);
  }

  // Where this lane's rows of the first 16 keys begin, for each load of `key_operands`.
  DEVICE void key_rows(SharedPointer (&rows)[KEY_LOADS]) {
    const int row = in_twos(lane & 7, lane >> 4), half = lane >> 3 & 1;
#pragma unroll
    for (int k = 0; k < KEY_LOADS; ++k) rows[k] = pinned(buffer(0) + swizzle<RING_PIECES, true>(row, k * 2 + half) * 16);
  }

  // Operands of 16 keys by HEAD_DIM channels: tiles 2 i and 2 i + 1, whose columns are `in_twos`.
  DEVICE void key_operands(u32 (&b)[2][STEPS][2], const SharedPointer (&rows)[KEY_LOADS], int first) {
#pragma unroll
    for (int k = 0; k < KEY_LOADS; ++k) {
      u32 r[4];
      load_matrices(r, rows[k] + first * RING_PIECES * 16);
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        if (BITS == 8) {
          b[u >> 1][k][u & 1] = r[u];
        } else {
          b[u >> 1][2 * k + (u & 1)][0] = r[u] << 4 & 0xf0f0f0f0u;
          b[u >> 1][2 * k + (u & 1)][1] = r[u] & 0xf0f0f0f0u;
        }
      }
    }
  }

  // Operands of KEYS values by 16 channels: the even ones and the odd ones, for each 32 keys.
  DEVICE void value_operands(u32 (&even)[KEYS / 32][2], u32 (&odd)[KEYS / 32][2], int piece, bool high_half) {
    const int at = (lane >> 4) * 16 * RING_PIECES + swizzle<RING_PIECES, true>(in_twos(lane & 7, lane >> 3 & 1), piece);
    const SharedPointer rows = pinned(buffer(1) + at * 16);
#pragma unroll
    for (int k = 0; k < KEYS / 32; ++k) {
      u32 r[4];
      load_matrices_transposed(r, rows + k * 32 * RING_PIECES * 16);
#pragma unroll
      for (int u = 0; u < 4; ++u)
        if (BITS == 4) r[u] = (high_half ? r[u] : r[u] << 4) & 0xf0f0f0f0u;
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        even[k][u] = pick_bytes(r[2 * u], r[2 * u + 1], 0x6420);
        odd[k][u] = pick_bytes(r[2 * u], r[2 * u + 1], 0x7531);
      }
    }
  }

  DEVICE void ring_tile(const float (&unit)[2], int first) {
    float score[KEYS / 8][4], found[2] = {LOWEST, LOWEST};
    u32 high[STEPS][4], low[STEPS][4];
    fetch(high, 0);
    fetch(low, STEPS);
    SharedPointer rows[KEY_LOADS];
    key_rows(rows);
    copy_wait<1>();
    block_barrier();
#pragma unroll
    for (int j = 0; j < KEYS / 8; j += 2) {
      u32 b[2][STEPS][2];
      key_operands(b, rows, j * 8);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        i32 dot[4] = {0, 0, 0, 0};
#pragma unroll
        for (int k = 0; k < STEPS; ++k) mma_s8(dot, high[k], b[h][k][0], b[h][k][1]);
#pragma unroll
        for (int e = 0; e < 4; ++e) dot[e] *= 256;
#pragma unroll
        for (int k = 0; k < STEPS; ++k) mma_s8(dot, low[k], b[h][k][0], b[h][k][1]);
#pragma unroll
        for (int e = 0; e < 4; ++e) score[j + h][e] = int_to_float(dot[e]);
      }
      // A thread has keys 16 i + 4 t, ... + 3 of every 16: two in tile 2 i, two in tile 2 i + 1.
      const int key = j * 8 + (lane & 3) * 4;
      const Vector4 four = *(const Vector4*)(scales + key);
      const float scale[4] = {bits_to_float(four.x), bits_to_float(four.y), bits_to_float(four.z), bits_to_float(four.w)};
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          float& s = score[j + (n >> 1)][part * 2 + (n & 1)];
          s *= scale[n];
        }
    }
    if (first + KEYS > p.length) {                  // the last tile
#pragma unroll
      for (int j = 0; j < KEYS / 8; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (first + (j >> 1) * 16 + (lane & 3) * 4 + (j & 1) * 2 + (e & 1) >= p.length) score[j][e] = LOWEST;
    }
#pragma unroll
    for (int j = 0; j < KEYS / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) found[e >> 1] = fmaxf(found[e >> 1], score[j][e]);
    block_barrier();
    load_ring(0, first + KEYS);
#pragma unroll
    for (int part = 0; part < 2; ++part) found[part] *= unit[part];
    raise(found);

    copy_wait<1>();
    block_barrier();
    // Weights are scaled by 2^shift, so that the largest possible product with a value scale has 16 bits.
    float widest = fmaxf(scales[KEYS + lane], scales[KEYS + 32 + lane]);
#pragma unroll
    for (int mask = 16; mask; mask >>= 1) widest = fmaxf(widest, shuffle_xor(widest, mask));
    const int shift = 15 + 127 - (int)(float_to_bits(widest * (65536.f / 65280.f)) >> 23);
    const float worth = bits_to_float((u32)(127 - shift) << 23);  // 2^-shift
    u32 weight_high[KEYS / 16][2], weight_low[KEYS / 16][2];
    float base[2], sum[2] = {0.f, 0.f};
#pragma unroll
    for (int part = 0; part < 2; ++part) base[part] = (float)shift - most[part];
#pragma unroll
    for (int j = 0; j < KEYS / 8; j += 2) {
      const Vector4 four = *(const Vector4*)(scales + KEYS + j * 8 + (lane & 3) * 4);
      const float scale[4] = {bits_to_float(four.x), bits_to_float(four.y), bits_to_float(four.z), bits_to_float(four.w)};
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        u32 bits[4];
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const float weight = exp2_fast(fmaf(score[j + (n >> 1)][part * 2 + (n & 1)], unit[part], base[part]));
          sum[part] += weight;
          bits[n] = float_to_bits(fmaf(weight, scale[n], INTEGER));
        }
        const u32 x = pick_bytes(bits[0], bits[1], 0x5140), y = pick_bytes(bits[2], bits[3], 0x5140);
        weight_low[j / 2][part] = pick_bytes(x, y, 0x5410);
        weight_high[j / 2][part] = pick_bytes(x, y, 0x7632);
      }
    }
#pragma unroll
    for (int part = 0; part < 2; ++part) total[part] = fmaf(sum[part], worth, total[part]);

    const float value_unit = worth * (BITS == 8 ? 1.f : 1.f / 16.f);
#pragma unroll
    for (int j = 0; j < HEAD_DIM / 8; j += 2) {          // 16 channels
      u32 b[2][KEYS / 32][2];
      if (BITS == 8) value_operands(b[0], b[1], j / 2, false);
      else value_operands(b[0], b[1], j / 4, j / 2 & 1);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        i32 product[4] = {0, 0, 0, 0};
#pragma unroll
        for (int k = 0; k < KEYS / 32; ++k) {
          const u32 a[4] = {weight_high[2 * k][0], weight_high[2 * k][1], weight_high[2 * k + 1][0], weight_high[2 * k + 1][1]};
          mma_u8(product, a, b[h][k][0], b[h][k][1]);
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) product[e] *= 256;
#pragma unroll
        for (int k = 0; k < KEYS / 32; ++k) {
          const u32 a[4] = {weight_low[2 * k][0], weight_low[2 * k][1], weight_low[2 * k + 1][0], weight_low[2 * k + 1][1]};
          mma_u8(product, a, b[h][k][0], b[h][k][1]);
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) out[j + h][e] = fmaf(int_to_float(product[e]), value_unit, out[j + h][e]);
      }
    }
    block_barrier();
    load_ring(1, first + KEYS);
  }

  DEVICE void ring() {
    if (!p.length) return;
    float unit[2];
    quantize_query(unit);
    load_ring(0, 0);
    load_ring(1, 0);
#pragma unroll 1
    for (int first = 0; first < p.length; first += KEYS) ring_tile(unit, first);
    copy_wait<0>();
  }

  DEVICE void write() {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      float all = total[part] + shuffle_xor(total[part], 1);
      all += shuffle_xor(all, 2);
      const float inverse = all > 0.f ? 1.f / all : 0.f;  // nothing to attend to gives zeros
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
