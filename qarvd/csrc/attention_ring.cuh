// Attention to the ring, in integers: codes are multiplied as they lie in memory. Queries are 16-bit integers in two
// bytes (256 * high + low), and so are the softmax's weights times the value scales; both products run once for each
// byte, into the same integers, which are shifted by 8 in between.
#pragma once
#include "attention.cuh"

constexpr float QUERY_LIMIT = 32512.f;  // 256 * 127
constexpr float INTEGER = 8388608.f;    // 2^23: x + INTEGER has round(x) in its low bits

template <int HEAD_DIM, Type TYPE, int BITS>
DEVICE void Attention<HEAD_DIM, TYPE, BITS>::load_ring(int which, int first) {
  constexpr int APART = ATTENTION_THREADS / RING_PIECES;
  const int key = threadIdx.x / RING_PIECES, piece = threadIdx.x % RING_PIECES;
  const u8* from = p.codes[which] + ((line() * p.capacity + first + key) * RING_PIECES + piece) * 16;
#pragma unroll
  for (int i = 0; i < KEYS / APART; ++i)
    copy_async16(buffer(which) + swizzle<RING_PIECES, true>(key + i * APART, piece) * 16,
                 from + i * ATTENTION_THREADS * 16, first + key + i * APART < p.length);
  if (threadIdx.x < KEYS)
    copy_async4(shared + 2 * BUFFER_BYTES + (which * KEYS + threadIdx.x) * 4,
                p.scale[which] + line() * p.capacity + first + threadIdx.x, first + (int)threadIdx.x < p.length);
  copy_commit();
}

// The two bytes of every query, as operands of the integer product, and what a unit of it is worth.
template <int HEAD_DIM, Type TYPE, int BITS>
DEVICE void Attention<HEAD_DIM, TYPE, BITS>::quantize_query(float (&unit)[2]) {
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
template <int HEAD_DIM, Type TYPE, int BITS>
DEVICE void Attention<HEAD_DIM, TYPE, BITS>::key_rows(SharedPointer (&rows)[KEY_LOADS]) {
  const int row = in_twos(lane & 7, lane >> 4), half = lane >> 3 & 1;
#pragma unroll
  for (int k = 0; k < KEY_LOADS; ++k) rows[k] = pinned(buffer(0) + swizzle<RING_PIECES, true>(row, k * 2 + half) * 16);
}

// Operands of 16 keys by HEAD_DIM channels: tiles 2 i and 2 i + 1, whose columns are `in_twos`.
template <int HEAD_DIM, Type TYPE, int BITS>
DEVICE void Attention<HEAD_DIM, TYPE, BITS>::key_operands(u32 (&b)[2][STEPS][2], const SharedPointer (&rows)[KEY_LOADS],
                                                          int first) {
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
template <int HEAD_DIM, Type TYPE, int BITS>
DEVICE void Attention<HEAD_DIM, TYPE, BITS>::value_operands(u32 (&even)[KEYS / 32][2], u32 (&odd)[KEYS / 32][2],
                                                            int piece, bool high_half) {
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

template <int HEAD_DIM, Type TYPE, int BITS>
DEVICE void Attention<HEAD_DIM, TYPE, BITS>::ring_tile(const float (&unit)[2], int first) {
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
        const u32 a[4] = {weight_high[2 * k][0], weight_high[2 * k][1],
                          weight_high[2 * k + 1][0], weight_high[2 * k + 1][1]};
        mma_u8(product, a, b[h][k][0], b[h][k][1]);
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) product[e] *= 256;
#pragma unroll
      for (int k = 0; k < KEYS / 32; ++k) {
        const u32 a[4] = {weight_low[2 * k][0], weight_low[2 * k][1],
                          weight_low[2 * k + 1][0], weight_low[2 * k + 1][1]};
        mma_u8(product, a, b[h][k][0], b[h][k][1]);
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) out[j + h][e] = fmaf(int_to_float(product[e]), value_unit, out[j + h][e]);
    }
  }
  block_barrier();
  load_ring(1, first + KEYS);
}

template <int HEAD_DIM, Type TYPE, int BITS>
DEVICE void Attention<HEAD_DIM, TYPE, BITS>::ring() {
  if (!p.length) return;
  float unit[2];
  quantize_query(unit);
  load_ring(0, 0);
  load_ring(1, 0);
#pragma unroll 1
  for (int first = 0; first < p.length; first += KEYS) ring_tile(unit, first);
  copy_wait<0>();
}
