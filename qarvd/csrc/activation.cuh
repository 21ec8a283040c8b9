// Activations to 8 bits: permute the channels of each token, outliers first, and give both ranges a scale.
// The meaning, to the bit: quantize_activation in qarvd/ops/reference.py.
#pragma once
#include "isa.cuh"

struct ActivationArguments {
  const void* x;      // [rows, channels], rows `stride` elements apart
  const i32* order;   // [channels]: the input channel of each column; null where columns stay as they are
  i8* codes;          // [rows, channels]
  float* scale;       // [rows, 2]: outlier, normal
  i32* sums;          // [rows, 2], of the codes
  i64 stride;
  i32 channels, n_outlier;
  float guard;
  i32 type;
};

constexpr float LEAST_SCALE = 1e-12f;

DEVICE float scale_of(float absmax, float inverse_limit) {
  float scale = absmax * inverse_limit;
  return scale < LEAST_SCALE ? LEAST_SCALE : scale;  // NaN stays NaN
}

DEVICE i32 code_of(float x, float inverse_scale, i32 limit) {
  i32 code = float_to_int(x * inverse_scale);
  return code > limit ? limit : code < -limit ? -limit : code;
}

// Bits of |x| order like |x|, and put NaN above all.
DEVICE u32 magnitude(float x) { return float_to_bits(x) & 0x7fffffffu; }
DEVICE u32 larger(u32 a, u32 b) { return a > b ? a : b; }

constexpr int ACTIVATION_THREADS = 256;

// One block a token.
DEVICE void quantize_activation(const ActivationArguments& p) {
  constexpr int WARPS = ACTIVATION_THREADS / 32;
  __shared__ u32 largest[2][WARPS];
  __shared__ i32 total[2][WARPS];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const i64 row = blockIdx.x;

  u32 most[2] = {0, 0};
  for (int k = threadIdx.x; k < p.channels; k += ACTIVATION_THREADS) {
    const int channel = p.order ? load_global(p.order + k) : k;
    const u32 size = magnitude(load_float(p.x, row * p.stride + channel, p.type));
    if (k < p.n_outlier) most[0] = larger(most[0], size);
    else most[1] = larger(most[1], size);
  }
  for (int range = 0; range < 2; ++range) {
    for (int mask = 16; mask; mask >>= 1) most[range] = larger(most[range], shuffle_xor(most[range], mask));
    if (lane == 0) largest[range][warp] = most[range];
  }
  block_barrier();
  for (int range = 0; range < 2; ++range)
    for (int w = 0; w < WARPS; ++w) most[range] = larger(most[range], largest[range][w]);

  float outlier = 0.f, normal = scale_of(bits_to_float(most[1]), 1.f / 127.f);
  if (p.n_outlier) {
    outlier = scale_of(bits_to_float(most[0]), 1.f / 127.f);
    const float least = outlier * p.guard;
    if (!(least <= normal) && normal == normal) normal = least;
  }
  const float inverse_outlier = 1.f / outlier, inverse_normal = 1.f / normal;
  i32 sum[2] = {0, 0};
  for (int k = threadIdx.x * 4; k < p.channels; k += ACTIVATION_THREADS * 4) {  // four columns lie in one range
    u32 packed = 0;
    const float inverse = k < p.n_outlier ? inverse_outlier : inverse_normal;
    i32 four = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int channel = p.order ? load_global(p.order + k + j) : k + j;
      const i32 code = code_of(load_float(p.x, row * p.stride + channel, p.type), inverse, 127);
      packed |= (u32)(u8)code << (8 * j);
      four += code;
    }
    if (k < p.n_outlier) sum[0] += four;
    else sum[1] += four;
    store_global((u32*)(p.codes + row * p.channels + k), packed);
  }
  for (int range = 0; range < 2; ++range) {
    for (int mask = 16; mask; mask >>= 1) sum[range] += shuffle_xor(sum[range], mask);
    if (lane == 0) total[range][warp] = sum[range];
  }
  block_barrier();
  if (threadIdx.x < 2) {
    const int range = threadIdx.x;
    i32 all = 0;
    for (int w = 0; w < WARPS; ++w) all += total[range][w];
    store_global(p.sums + row * 2 + range, all);
    store_global(p.scale + row * 2 + range, range ? normal : outlier);
  }
}
