// Half precision in integer arithmetic, exact on every machine.
#pragma once
#include <cstring>

namespace emulator {

inline float from_bits(unsigned bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
inline unsigned to_bits(float x) {
  unsigned bits;
  memcpy(&bits, &x, 4);
  return bits;
}

inline float from_half(unsigned short half) {
  unsigned sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, fraction = half & 0x3ffu;
  if (exponent == 31) return from_bits(sign | 0x7f800000u | fraction << 13);
  if (exponent == 0) return from_bits(sign | to_bits((float)fraction * 0x1p-24f));
  return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

// Rounds half to even; what is too large becomes infinite, and every NaN one, as `cvt.rn.f16.f32` has it.
inline unsigned short to_half(float x) {
  unsigned bits = to_bits(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fff;
  if (magnitude >= 0x47800000u) return (unsigned short)(sign | 0x7c00u);  // from 2^16
  unsigned exponent = magnitude >> 23, mantissa = magnitude, dropped = 13, result;
  if (exponent < 113) {  // below 2^-14: in steps of 2^-24
    if (exponent < 102) return (unsigned short)sign;  // below 2^-25, half a step
    mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    dropped = 126 - exponent;
    result = mantissa >> dropped;
  } else {
    result = (magnitude >> 13) - (112u << 10);
  }
  unsigned rest = mantissa & ((1u << dropped) - 1), half = 1u << (dropped - 1);
  result += rest > half || (rest == half && (result & 1));
  return (unsigned short)(sign | result);
}

}  // namespace emulator
