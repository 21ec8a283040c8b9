// What the 32 lanes of a warp do together, with the fragment layouts of the PTX ISA ("Matrix fragments for mma").
#include "machine.h"
#include "numbers.h"

namespace emulator {
namespace {

int group(int lane) { return lane / 4; }
int within(int lane) { return lane % 4; }

// d[16 x 8] of four values a lane: rows `group` and 8 below it, two columns side by side.
template <class Product, class Sum>
void for_each_result(void* const* lanes, Sum sum) {
  for (int lane = 0; lane < 32; ++lane) {
    auto& d = ((Product*)lanes[lane])->d;
    for (int i = 0; i < 4; ++i) d[i] = sum(d[i], group(lane) + i / 2 * 8, within(lane) * 2 + i % 2);
  }
}

template <bool SIGNED>
short byte_of(unsigned bytes, int i) {
  return SIGNED ? (short)(signed char)(bytes >> 8 * i) : (short)(unsigned char)(bytes >> 8 * i);
}

// m16n8k32: four bytes along k in a register. Sums wrap around, as without .satfinite.
template <bool SIGNED>
void multiply_bytes(void* const* lanes) {
  short a[16][32], b[8][32];
  for (int lane = 0; lane < 32; ++lane) {
    const ByteProduct& mine = *(const ByteProduct*)lanes[lane];
    for (int r = 0; r < 4; ++r)
      for (int i = 0; i < 4; ++i)
        a[group(lane) + r % 2 * 8][within(lane) * 4 + r / 2 * 16 + i] = byte_of<SIGNED>(mine.a[r], i);
    for (int r = 0; r < 2; ++r)
      for (int i = 0; i < 4; ++i) b[group(lane)][within(lane) * 4 + r * 16 + i] = byte_of<true>(mine.b[r], i);
  }
  for_each_result<ByteProduct>(lanes, [&](int d, int row, int column) {
    int sum = 0;
    for (int k = 0; k < 32; ++k) sum += a[row][k] * b[column][k];
    return (int)((unsigned)d + (unsigned)sum);
  });
}

float bfloat(unsigned short bits) { return from_bits((unsigned)bits << 16); }

// m16n8k16: two floats along k in a register. Their products are exact in float32 (bfloat16: save at the ends of the
// exponent's range) and are added one by one in the order of k, each sum rounded to float32. The order and the inner
// precision of a GPU are not specified: expect its results within rounding of these, not the same bits.
template <float (*FROM_BITS)(unsigned short)>
void multiply_floats(void* const* lanes) {
  float a[16][16], b[8][16];
  for (int lane = 0; lane < 32; ++lane) {
    const FloatProduct& mine = *(const FloatProduct*)lanes[lane];
    for (int r = 0; r < 4; ++r)
      for (int i = 0; i < 2; ++i)
        a[group(lane) + r % 2 * 8][within(lane) * 2 + r / 2 * 8 + i] = FROM_BITS((unsigned short)(mine.a[r] >> 16 * i));
    for (int r = 0; r < 2; ++r)
      for (int i = 0; i < 2; ++i)
        b[group(lane)][within(lane) * 2 + r * 8 + i] = FROM_BITS((unsigned short)(mine.b[r] >> 16 * i));
  }
  for_each_result<FloatProduct>(lanes, [&](float d, int row, int column) {
    for (int k = 0; k < 16; ++k) d += a[row][k] * b[column][k];
    return d;
  });
}

unsigned element(void* const* lanes, int matrix, int row, int column) {
  return ((const Matrices*)lanes[matrix * 8 + row])->row[column / 2] >> 16 * (column % 2) & 0xffff;
}

}  // namespace

void multiply_signed_bytes(void* const* lanes) { multiply_bytes<true>(lanes); }
void multiply_unsigned_bytes(void* const* lanes) { multiply_bytes<false>(lanes); }
void multiply_halves(void* const* lanes) { multiply_floats<from_half>(lanes); }
void multiply_bfloats(void* const* lanes) { multiply_floats<bfloat>(lanes); }

void spread_matrices(void* const* lanes) {
  for (int lane = 0; lane < 32; ++lane)
    for (int matrix = 0; matrix < 4; ++matrix)
      ((Matrices*)lanes[lane])->result[matrix] = element(lanes, matrix, group(lane), within(lane) * 2) |
                                                 element(lanes, matrix, group(lane), within(lane) * 2 + 1) << 16;
}
void spread_matrices_transposed(void* const* lanes) {
  for (int lane = 0; lane < 32; ++lane)
    for (int matrix = 0; matrix < 4; ++matrix)
      ((Matrices*)lanes[lane])->result[matrix] = element(lanes, matrix, within(lane) * 2, group(lane)) |
                                                 element(lanes, matrix, within(lane) * 2 + 1, group(lane)) << 16;
}

void exchange(void* const* lanes) {
  for (int lane = 0; lane < 32; ++lane) {
    Shuffle& mine = *(Shuffle*)lanes[lane];
    mine.result = ((const Shuffle*)lanes[mine.from])->value;
  }
}

}  // namespace emulator
