// The dual-scale linear: 8-bit activations by 8-bit weights, summed as integers on tensor cores.
// The meaning, to the bit: dual_scale_linear in qarvd/ops/reference.py.
//
// One loop over K. Its first `n_outlier` columns are the outlier range; where it ends, every sum is rescaled once from
// the outlier to the normal scales and rounded ("the fold"), and the loop goes on in the same registers.
#pragma once
#include "isa.cuh"

struct LinearArguments {
  const i8* x;             // [rows, channels]
  const i8* weight;        // [outputs, channels]
  const float* x_scale;    // [rows, 2]: outlier, normal
  const i32* x_sums;       // [rows, 2]
  const float* scale;      // [outputs, 2]
  const i8* zero;          // [outputs, 2] or null
  const float* bias;       // [outputs] or null
  void* out;               // [rows, outputs]
  i32 rows, outputs, channels, n_outlier;
  i32 type;                // of `out`
};

constexpr int K_TILE = 64;
constexpr int LINEAR_THREADS = 128;  // 2 x 2 warps

// Where 16-byte piece `piece` of row `row` lies in shared memory, in pieces: no two of the eight rows that ldmatrix
// reads at once share banks. Rows are read eight in a row, or IN_TWOS: 0, 1, 4, 5, 8, 9, 12, 13. It repeats every 16
// rows: a read adds its multiple of 16 to the result, which then is a constant in the instruction.
template <int PIECES, bool IN_TWOS>
DEVICE int swizzle(int row, int piece) {
  static_assert(PIECES == 2 || PIECES == 4 || PIECES >= 8, "bytes a row");
  if (PIECES == 2) return (row * 2 + piece) ^ ((row >> 2 & 1) | (row >> 3 & 1) << 2);  // in twos only
  if (PIECES == 4) return row * 4 + (piece ^ (row >> (IN_TWOS ? 2 : 1) & 3));
  return row * PIECES + (piece ^ (IN_TWOS ? (row & 1) | (row >> 2 & 3) << 1 : row & 7));
}

// Column c of the 8-wide matrix tile 2 i + h is output 16 i + in_twos(c, h): a thread's two columns in two tiles are
// four neighbours, and the four threads of a row write a whole 32-byte sector.
DEVICE int in_twos(int column, int tile) { return (column >> 1) * 4 + tile * 2 + (column & 1); }

// WARP_M x WARP_N outputs for each of the 2 x 2 warps.
template <int WARP_M, int WARP_N, int STAGES>
struct Linear {
  static constexpr int M = 2 * WARP_M, N = 2 * WARP_N, TILES_M = WARP_M / 16, TILES_N = WARP_N / 8;
  static constexpr int X_BYTES = M * K_TILE, PIECES = K_TILE / 16, WEIGHT_BYTES = N * PIECES * 16;
  static constexpr int STAGE_BYTES = X_BYTES + WEIGHT_BYTES, SHARED_BYTES = STAGES * STAGE_BYTES;
  static_assert(TILES_N % 2 == 0, "weights come two tiles at once");

  const LinearArguments& p;
  SharedPointer shared;
  int lane, warp_m, warp_n, first_row, first_output, steps;
  i32 sum[TILES_M][TILES_N][4];

  DEVICE Linear(const LinearArguments& arguments, unsigned char* memory) : p(arguments), shared(shared_pointer(memory)) {
    const int warp = threadIdx.x >> 5;
    lane = threadIdx.x & 31;
    warp_m = (warp >> 1) * WARP_M;
    warp_n = (warp & 1) * WARP_N;
    first_row = blockIdx.y * M;
    first_output = blockIdx.x * N;
    steps = (p.channels + K_TILE - 1) / K_TILE;
#pragma unroll
    for (int i = 0; i < TILES_M; ++i)
#pragma unroll
      for (int j = 0; j < TILES_N; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[i][j][e] = 0;
  }

  // What is not there becomes zeros, and no address is read.
  template <int ROWS, int ROW_PIECES, bool IN_TWOS>
  DEVICE void copy(SharedPointer to, const void* from, int first, int rows, int row_bytes, int step) {
    constexpr int APART = LINEAR_THREADS / ROW_PIECES;  // rows from one copy of a thread to its next
    const int row = threadIdx.x / ROW_PIECES, piece = threadIdx.x % ROW_PIECES;
    const int offset = (step * ROW_PIECES + piece) * 16;
    const u8* at = (const u8*)from + (i64)(first + row) * row_bytes + offset;
#pragma unroll
    for (int i = 0; i < ROWS / APART; ++i, at += APART * row_bytes)
      copy_async16(to + swizzle<ROW_PIECES, IN_TWOS>(row + i * APART, piece) * 16, at,
                   first + row + i * APART < rows && offset < row_bytes);
  }

  DEVICE void load(int step) {
    if (step < steps) {
      const SharedPointer stage = shared + step % STAGES * STAGE_BYTES;
      copy<M, 4, false>(stage, p.x, first_row, p.rows, p.channels, step);
      copy<N, PIECES, true>(stage + X_BYTES, p.weight, first_output, p.outputs, p.channels, step);
    }
    copy_commit();
  }

  DEVICE void arrive(int step) {  // tile `step` is there, and the one before it may be overwritten
    copy_wait<STAGES - 2>();
    block_barrier();
    load(step + STAGES - 1);
  }

  DEVICE void multiply(int step, int half) {  // 32 columns
    const SharedPointer x = shared + step % STAGES * STAGE_BYTES;
    const SharedPointer weight = x + X_BYTES;
    u32 a[TILES_M][4], b[TILES_N][2];
#pragma unroll
    for (int i = 0; i < TILES_M; ++i)
      load_matrices(a[i], x + (warp_m + i * 16) * K_TILE + swizzle<4, false>(lane & 15, half * 2 + (lane >> 4)) * 16);
    const int column = lane & 7, group = lane >> 3;
#pragma unroll
    for (int j = 0; j < TILES_N; j += 2) {
      u32 r[4];
      const int at = swizzle<PIECES, true>(in_twos(column, group >> 1), half * 2 + (group & 1));
      load_matrices(r, weight + ((warp_n + j * 8) * PIECES + at) * 16);
      b[j][0] = r[0], b[j][1] = r[1], b[j + 1][0] = r[2], b[j + 1][1] = r[3];
    }
#pragma unroll
    for (int i = 0; i < TILES_M; ++i)
#pragma unroll
      for (int j = 0; j < TILES_N; ++j) mma_s8(sum[i][j], a[i], b[j][0], b[j][1]);
  }

  DEVICE int row_of(int i, int part) const { return first_row + warp_m + i * 16 + part * 8 + (lane >> 2); }
  DEVICE int output_of(int j) const { return first_output + warp_n + j * 8 + (lane & 3) * 4; }  // j even: the first of 4

  DEVICE void fold() {
#pragma unroll
    for (int j = 0; j < TILES_N; j += 2)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int n = output_of(j) + e, output = n < p.outputs ? n : p.outputs - 1;
        const float w = load_global(p.scale + output * 2) / load_global(p.scale + output * 2 + 1);
#pragma unroll
        for (int i = 0; i < TILES_M; ++i)
#pragma unroll
          for (int part = 0; part < 2; ++part) {
            const int m = row_of(i, part), row = m < p.rows ? m : p.rows - 1;
            const float x = load_global(p.x_scale + row * 2) / load_global(p.x_scale + row * 2 + 1);
            i32& s = sum[i][j + (e >> 1)][part * 2 + (e & 1)];
            s = float_to_int(int_to_float(s) * (x * w));
          }
      }
  }

  DEVICE void write() {
#pragma unroll
    for (int j = 0; j < TILES_N; j += 2) {
      const int n = output_of(j);
      if (n >= p.outputs) continue;
      float outlier[4], normal[4], outlier_zero[4], normal_zero[4], bias[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int output = n + e < p.outputs ? n + e : n;
        outlier[e] = load_global(p.scale + output * 2);
        normal[e] = load_global(p.scale + output * 2 + 1);
        if (p.zero) {
          outlier_zero[e] = outlier[e] * int_to_float(load_global(p.zero + output * 2));
          normal_zero[e] = normal[e] * int_to_float(load_global(p.zero + output * 2 + 1));
        }
        if (p.bias) bias[e] = load_global(p.bias + output);
      }
#pragma unroll
      for (int i = 0; i < TILES_M; ++i)
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          const int m = row_of(i, part);
          if (m >= p.rows) continue;
          const float x_normal = load_global(p.x_scale + m * 2 + 1);
          float y[4];
#pragma unroll
          for (int e = 0; e < 4; ++e)
            y[e] = int_to_float(sum[i][j + (e >> 1)][part * 2 + (e & 1)]) * (x_normal * normal[e]);
          if (p.zero) {
            const float shift_normal = x_normal * int_to_float(load_global(p.x_sums + m * 2 + 1));
            float shift_outlier = 0.f;
            if (p.n_outlier) shift_outlier = load_global(p.x_scale + m * 2) * int_to_float(load_global(p.x_sums + m * 2));
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              float shift = shift_normal * normal_zero[e];
              if (p.n_outlier) shift = shift_outlier * outlier_zero[e] + shift;
              y[e] = y[e] - shift;
            }
          }
          if (p.bias) {
#pragma unroll
            for (int e = 0; e < 4; ++e) y[e] = y[e] + bias[e];
          }
          store(m, n, y);
        }
    }
  }

  DEVICE void store(int m, int n, const float (&y)[4]) {
    const i64 at = (i64)m * p.outputs + n;
    if (p.outputs % 4 == 0) {
      if (p.type == FLOAT32) {
        store_global((Vector4*)((float*)p.out + at),
                     Vector4{float_to_bits(y[0]), float_to_bits(y[1]), float_to_bits(y[2]), float_to_bits(y[3])});
      } else {
        const u32 low = p.type == FLOAT16 ? pack_floats<FLOAT16>(y[0], y[1]) : pack_floats<BFLOAT16>(y[0], y[1]);
        const u32 high = p.type == FLOAT16 ? pack_floats<FLOAT16>(y[2], y[3]) : pack_floats<BFLOAT16>(y[2], y[3]);
        store_global((u64*)((u16*)p.out + at), (u64)high << 32 | low);
      }
      return;
    }
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (n + e < p.outputs) {
        if (p.type == FLOAT32) store_global((float*)p.out + at + e, y[e]);
        else store_global((u16*)p.out + at + e, p.type == FLOAT16 ? float_to_half(y[e]) : float_to_bfloat(y[e]));
      }
  }

  DEVICE void run() {
#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) load(s);
    int step = 0;
    if (p.n_outlier) {
#pragma unroll 1
      for (; step < p.n_outlier / K_TILE; ++step) {
        arrive(step);
        multiply(step, 0);
        multiply(step, 1);
      }
      const bool odd = p.n_outlier % K_TILE;  // the ranges meet in the middle of a tile
      if (odd) {
        arrive(step);
        multiply(step, 0);
      }
      fold();
      if (odd) multiply(step++, 1);
    }
#pragma unroll 1
    for (; step < steps; ++step) {
      arrive(step);
      multiply(step, 0);
      multiply(step, 1);
    }
    copy_wait<0>();
    write();
  }
};
