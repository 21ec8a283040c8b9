// Attention to the sink and the newest chunk in 16-bit floats, as in FlashAttention 2.
#pragma once
#include "attention.cuh"

// `first` may lie behind the last key: what is not there becomes zeros, and no address is read.
template <int HEAD_DIM, Type TYPE, int BITS>
DEVICE void Attention<HEAD_DIM, TYPE, BITS>::load_plain(int segment, int which, int first) {
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
template <int HEAD_DIM, Type TYPE, int BITS>
DEVICE void Attention<HEAD_DIM, TYPE, BITS>::load_query(float (&lacking)[2]) {
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
        lacking[part] +=
            to_float((u16)two) * load_global(offset) + to_float((u16)(two >> 16)) * load_global(offset + 1);
      }
    }
    lacking[part] += shuffle_xor(lacking[part], 1);
    lacking[part] += shuffle_xor(lacking[part], 2);
    lacking[part] *= p.log2e_over_root;
  }
  keep(q, 0);
}

template <int HEAD_DIM, Type TYPE, int BITS>
DEVICE void Attention<HEAD_DIM, TYPE, BITS>::plain(int segment) {
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
