// Keys and values into the ring: 8 or 4 bits, a scale for each token and head. One warp a token, head and tensor.
// The meaning, to the bit: kv_append in qarvd/ops/reference.py.
#pragma once
#include "activation.cuh"

struct AppendArguments {
  const void* source[2];   // key, value: [batch, heads, tokens, head_dim] by their strides
  u8* codes[2];            // [batch, heads, capacity, head_dim * bits / 8]
  float* scale[2];         // [batch, heads, capacity]
  const float* offset;     // [batch, heads, head_dim], taken off the keys; or null
  i64 stride[2][3];        // of batch, head and token, in elements
  i32 heads, tokens, head_dim, capacity, position, bits, type;
};

constexpr int APPEND_WARPS = 4;
constexpr int APPEND_GROUPS = 8;  // of 32 channels, at most

// grid: tokens / APPEND_WARPS, heads, batch * 2
DEVICE void append(const AppendArguments& p) {
  const int lane = threadIdx.x & 31, token = blockIdx.x * APPEND_WARPS + (threadIdx.x >> 5);
  const int head = blockIdx.y, batch = blockIdx.z >> 1, which = blockIdx.z & 1;
  if (token >= p.tokens) return;  // a whole warp
  const i64 line = (i64)batch * p.heads + head, from = batch * p.stride[which][0] + head * p.stride[which][1] +
                                                       token * p.stride[which][2];
  const int groups = p.head_dim / 32;

  float x[APPEND_GROUPS];
  u32 most = 0;
#pragma unroll
  for (int i = 0; i < APPEND_GROUPS; ++i)
    if (i < groups) {
      x[i] = load_float(p.source[which], from + i * 32 + lane, p.type);
      if (which == 0 && p.offset) x[i] -= load_global(p.offset + line * p.head_dim + i * 32 + lane);
      most = larger(most, magnitude(x[i]));
    }
  for (int mask = 16; mask; mask >>= 1) most = larger(most, shuffle_xor(most, mask));

  const i32 limit = p.bits == 8 ? 127 : 7;
  const float scale = scale_of(bits_to_float(most), p.bits == 8 ? 1.f / 127.f : 1.f / 7.f), inverse = 1.f / scale;
  const i64 slot = line * p.capacity + (p.position + token) % p.capacity;
  u8* codes = p.codes[which] + slot * (p.head_dim * p.bits / 8);
#pragma unroll
  for (int i = 0; i < APPEND_GROUPS; ++i)
    if (i < groups) {
      const i32 code = code_of(x[i], inverse, limit);
      if (p.bits == 8) {
        store_global(codes + i * 32 + lane, (u8)code);
      } else {  // byte j: channel j in the low half, channel 16 + j in the high half
        const i32 other = shuffle_xor(code, 16);
        if (lane < 16) store_global(codes + i * 16 + lane, (u8)((code & 15) | (u32)other << 4));
      }
    }
  if (lane == 0) store_global(p.scale[which] + slot, scale);
}
