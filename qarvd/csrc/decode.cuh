// Stored weights to the 8-bit codes that the linear multiplies.
// The meaning, to the bit: decode_weight in qarvd/ops/reference.py.
#pragma once
#include "isa.cuh"

struct DecodeArguments {
  const u8* codes;          // [rows, channels * bits / 8]
  const void* group_scale;  // [rows, channels / group], float8_e4m3 or float32; null for plain codes
  const float* table;       // [2^bits]; null where code c stands for c - 2^(bits - 1)
  i8* out;                  // [rows, channels]
  i64 pieces;               // of 32 columns, in all rows
  i32 channels, group;
  i32 wide_scale;           // whether group_scale is float32
};

constexpr int DECODE_THREADS = 256;

DEVICE float e4m3_to_float(u8 x) {
  const float size = bits_to_float((u32)(x & 0x7f) << 20) * bits_to_float(0x7b800000u);  // times 2^120
  return x & 0x80 ? -size : size;
}

// Column `column` of a plane of `width` bits each, whose first columns are in `words`.
DEVICE u32 plane_bits(const u32* words, int column, int width) {
  const int bit = column * width;
  return words[bit >> 5] >> (bit & 31) & ((1u << width) - 1);
}

// A thread decodes 32 columns of a row.
template <int BITS, bool PLAIN>
DEVICE void decode(const DecodeArguments& p) {
  constexpr int LOW = BITS == 3 ? 2 : 4, HIGH = BITS - LOW;  // widths of the planes
  __shared__ float table[1 << BITS];
  if (!PLAIN) {
    if (threadIdx.x < 1 << BITS)
      table[threadIdx.x] = p.table ? load_global(p.table + threadIdx.x) : int_to_float((i32)threadIdx.x - (1 << (BITS - 1)));
    block_barrier();
  }
  const i64 piece = (i64)blockIdx.x * DECODE_THREADS + threadIdx.x;
  if (piece >= p.pieces) return;
  const int across = p.channels / 32;
  const i64 row = piece / across;
  const int first = (int)(piece - row * across) * 32;
  const u8* codes = p.codes + row * (p.channels / 8 * BITS);
  u32 low[LOW], high[HIGH ? HIGH : 1];
#pragma unroll
  for (int i = 0; i < LOW; ++i) low[i] = load_global((const u32*)(codes + first / 8 * LOW) + i);
#pragma unroll
  for (int i = 0; i < HIGH; ++i) high[i] = load_global((const u32*)(codes + p.channels / 8 * LOW + first / 8 * HIGH) + i);

  u32 word[8];
#pragma unroll
  for (int part = 0; part < 2; ++part) {  // 16 columns have one scale
    float scale = 1.f;
    if (!PLAIN) {
      const i64 at = row * (p.channels / p.group) + (first + 16 * part) / p.group;
      scale = p.wide_scale ? load_global((const float*)p.group_scale + at) : e4m3_to_float(load_global((const u8*)p.group_scale + at));
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      u32 four = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int column = 16 * part + 4 * k + j;
        i32 code;
        if (PLAIN && BITS == 4) {  // byte b of 16: column b in the low half, column 16 + b in the high half
          const u32 both = low[k] >> (8 * j);
          code = (i32)(both << (part ? 24 : 28)) >> 28;
        } else {
          code = (i32)(plane_bits(low, column, LOW) | (HIGH ? plane_bits(high, column, HIGH ? HIGH : 1) << LOW : 0u));
          if (PLAIN) {
            code -= 1 << (BITS - 1);
          } else {
            code = float_to_int(table[code] * scale);
            code = code > 127 ? 127 : code < -127 ? -127 : code;
          }
        }
        four |= (u32)(u8)code << (8 * j);
      }
      word[4 * part + k] = four;
    }
  }
  Vector4* out = (Vector4*)(p.out + row * p.channels + first);
  store_global(out, Vector4{word[0], word[1], word[2], word[3]});
  store_global(out + 1, Vector4{word[4], word[5], word[6], word[7]});
}
