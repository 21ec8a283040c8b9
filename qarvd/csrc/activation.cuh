// Activations to 8 bits: permute the channels of each token, outliers first, rotate both ranges, and give each a scale.
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
  i32 width[2];       // of the blocks in which the ranges are rotated: 1 (not), or a power of two from 16 to 256
  float norm[2];      // 1 / sqrt(width)
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
constexpr int SHARE = 16;            // neighbouring columns of a thread
constexpr int UNIT = 16 * SHARE;     // those of half a warp: the widest block of a rotation
constexpr float ROUNDER = 12582912.f;  // 1.5 * 2^23: what is added to it is rounded, half to even, to its low bits
constexpr u32 ROUNDER_BITS = 0x4b400000u;

// Whether, in an odd number of pairs of bits, both are set.
DEVICE bool both_set(u32 index) {
  u32 both = index & index >> 1 & 0x55u;
  both ^= both >> 4;
  return (both ^ both >> 2) & 1;
}

// The two bits of each pair exchanged.
DEVICE u32 exchanged(u32 index, u32 pairs) { return (index & pairs) << 1 | (index >> 1 & pairs) | (index & ~(pairs * 3)); }

template <int UNITS>  // of half a warp, at most
struct Activation {
  const ActivationArguments& p;
  int lane, half, halves;
  float x[UNITS][SHARE];

  DEVICE explicit Activation(const ActivationArguments& arguments) : p(arguments) {
    lane = threadIdx.x & 15;
    half = threadIdx.x >> 4;
    halves = blockDim.x >> 4;
  }

  DEVICE int units(int range) const { return ((range ? p.channels - p.n_outlier : p.n_outlier) + UNIT - 1) / UNIT; }

  struct Place {
    int range, start, end;  // the first of this thread's columns, and where its range ends
  };
  DEVICE Place place(int i) const {
    const int unit = half + i * halves, first = units(0);
    if (unit < first) return {0, unit * UNIT + lane * SHARE, p.n_outlier};
    return {1, p.n_outlier + (unit - first) * UNIT + lane * SHARE, p.channels};
  }

  DEVICE void load(float (&v)[SHARE], int start, i64 row) {
    const i64 at = row * p.stride;
    if (p.order) {
#pragma unroll
      for (int j = 0; j < SHARE; j += 4) {
        const Vector4 from = load_global((const Vector4*)(p.order + start + j));
        v[j] = load_float(p.x, at + from.x, p.type), v[j + 1] = load_float(p.x, at + from.y, p.type);
        v[j + 2] = load_float(p.x, at + from.z, p.type), v[j + 3] = load_float(p.x, at + from.w, p.type);
      }
    } else if (p.type == FLOAT32) {
#pragma unroll
      for (int j = 0; j < SHARE; j += 4) {
        const Vector4 four = load_global((const Vector4*)((const float*)p.x + at + start + j));
        v[j] = bits_to_float(four.x), v[j + 1] = bits_to_float(four.y);
        v[j + 2] = bits_to_float(four.z), v[j + 3] = bits_to_float(four.w);
      }
    } else {
#pragma unroll
      for (int j = 0; j < SHARE; j += 8) {
        const Vector4 eight = load_global((const Vector4*)((const u16*)p.x + at + start + j));
        const u32 pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const u16 low = (u16)pairs[k], high = (u16)(pairs[k] >> 16);
          v[j + 2 * k] = p.type == FLOAT16 ? half_to_float(low) : bfloat_to_float(low);
          v[j + 2 * k + 1] = p.type == FLOAT16 ? half_to_float(high) : bfloat_to_float(high);
        }
      }
    }
  }

  // The sums of `butterflies` in qarvd/ops/hadamard.py: within a thread, then across the lanes of half a warp. What
  // belongs at column j of the thread's 16 is left at exchanged(j).
  // `lanes` are those of a block, `most` those of either range's, as a whole warp shuffles.
  DEVICE void rotate(float (&v)[SHARE], int lanes, int most, float norm) {
    const bool odd = both_set(lane & (lanes - 1));
#pragma unroll
    for (int j = 0; j < SHARE; ++j)
      if (both_set(j) != odd) v[j] = -v[j];
#pragma unroll
    for (int step = 1; step < SHARE; step *= 2)
#pragma unroll
      for (int j = 0; j < SHARE; ++j)
        if (!(j & step)) {
          const float first = v[j], second = v[j + step];
          v[j] = first + second, v[j + step] = first - second;
        }
#pragma unroll 1
    for (int step = 1; step < most; step *= 2) {
      const float own = lane & step ? -1.f : 1.f;
      const bool within = step < lanes;
#pragma unroll
      for (int j = 0; j < SHARE; ++j) {
        const float other = shuffle_xor(v[j], step);
        if (within) v[j] = own * v[j] + other;
      }
    }
#pragma unroll
    for (int j = 0; j < SHARE; ++j) v[j] *= both_set(j) != odd ? -norm : norm;
  }

  DEVICE void run() {
    __shared__ u32 largest[2][ACTIVATION_THREADS / 32];
    __shared__ i32 total[2][ACTIVATION_THREADS / 32];
    const int warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    const i64 row = blockIdx.x;
    const int widest = p.width[0] > p.width[1] ? p.width[0] : p.width[1];

    u32 most[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < UNITS; ++i) {
      if (i * halves >= units(0) + units(1)) break;  // the whole block
      const Place at = place(i);
#pragma unroll
      for (int j = 0; j < SHARE; ++j) x[i][j] = 0.f;
      if (at.start < at.end) load(x[i], at.start, row);
      if (widest > 1) rotate(x[i], p.width[at.range] / SHARE, widest / SHARE, p.norm[at.range]);
      u32 size = 0;
#pragma unroll
      for (int j = 0; j < SHARE; ++j) size = larger(size, magnitude(x[i][j]));
      if (at.range) most[1] = larger(most[1], size);
      else most[0] = larger(most[0], size);
    }
    for (int range = 0; range < 2; ++range) {
      for (int mask = 16; mask; mask >>= 1) most[range] = larger(most[range], shuffle_xor(most[range], mask));
      if ((threadIdx.x & 31) == 0) largest[range][warp] = most[range];
    }
    block_barrier();
    for (int range = 0; range < 2; ++range)
      for (int w = 0; w < warps; ++w) most[range] = larger(most[range], largest[range][w]);

    float outlier = 0.f, normal = scale_of(bits_to_float(most[1]), 1.f / 127.f);
    if (p.n_outlier) {
      outlier = scale_of(bits_to_float(most[0]), 1.f / 127.f);
      const float least = outlier * p.guard;
      if (!(least <= normal) && normal == normal) normal = least;
    }
    const float inverse_outlier = 1.f / outlier, inverse_normal = 1.f / normal;
    i32 sum[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < UNITS; ++i) {
      if (i * halves >= units(0) + units(1)) break;
      const Place at = place(i);
      if (at.start >= at.end) continue;
      const float inverse = at.range ? inverse_normal : inverse_outlier;
      u32 codes[SHARE], all = 0;
#pragma unroll
      for (int j = 0; j < SHARE; ++j) {  // no code is beyond 127: the scale is that of the largest
        codes[j] = float_to_bits(x[i][j] * inverse + ROUNDER);
        all += codes[j] - ROUNDER_BITS;
      }
      if (at.range) sum[1] += (i32)all;
      else sum[0] += (i32)all;
      store(codes, row * p.channels + at.start, p.width[at.range] / SHARE);
    }
    for (int range = 0; range < 2; ++range) {
      for (int mask = 16; mask; mask >>= 1) sum[range] += shuffle_xor(sum[range], mask);
      if ((threadIdx.x & 31) == 0) total[range][warp] = sum[range];
    }
    block_barrier();
    if (threadIdx.x < 2) {
      const int range = threadIdx.x;
      i32 all = 0;
      for (int w = 0; w < warps; ++w) all += total[range][w];
      store_global(p.sums + row * 2 + range, all);
      store_global(p.scale + row * 2 + range, range ? normal : outlier);
    }
  }

  // `lanes` of a block hold each other's columns where channels were rotated; 0 if they were not.
  DEVICE void store(const u32 (&codes)[SHARE], i64 at, int lanes) {
    u32 word[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      u32 four[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) four[j] = lanes ? codes[exchanged(4 * k + j, 0x5)] : codes[4 * k + j];
      word[k] = pick_bytes(pick_bytes(four[0], four[1], 0x0040), pick_bytes(four[2], four[3], 0x0040), 0x5410);
    }
    if (lanes > 1) {
      const u32 pairs = lanes == 16 ? 0x5u : lanes >= 4 ? 0x1u : 0u, inner = lane & (lanes - 1);
      at += ((int)exchanged(inner, pairs) - (int)inner) * SHARE;
    }
    store_global((Vector4*)(p.codes + at), Vector4{word[0], word[1], word[2], word[3]});
  }
};
