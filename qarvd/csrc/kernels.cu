// Every kernel by name; each takes one struct.
#include "activation.cuh"
#include "append.cuh"
#include "attention_plain.cuh"
#include "attention_ring.cuh"
#include "decode.cuh"
#include "linear.cuh"

#define ACTIVATION(NAME, UNITS)                                                               \
  KERNEL __launch_bounds__(ACTIVATION_THREADS) NAME(const ActivationArguments p) {            \
    Activation<UNITS>(p).run();                                                               \
  }
ACTIVATION(qarvd_quantize_activation, 1)
ACTIVATION(qarvd_quantize_activation_wide, 4)

#define DECODE(NAME, BITS, PLAIN)                                                             \
  KERNEL __launch_bounds__(DECODE_THREADS) NAME(const DecodeArguments p) { decode<BITS, PLAIN>(p); }
DECODE(qarvd_decode_w3g, 3, false)
DECODE(qarvd_decode_w4, 4, true)
DECODE(qarvd_decode_w4g, 4, false)
DECODE(qarvd_decode_w6, 6, true)
DECODE(qarvd_decode_w6g, 6, false)

KERNEL __launch_bounds__(APPEND_WARPS * 32) qarvd_kv_append(const AppendArguments p) { append(p); }

#define LINEAR(NAME, WARP_M, WARP_N, STAGES)                                                  \
  KERNEL __launch_bounds__(LINEAR_THREADS, 2) NAME(const LinearArguments p) {                 \
    SHARED_MEMORY(memory);                                                                    \
    Linear<WARP_M, WARP_N, STAGES>(p, memory).run();                                          \
  }
LINEAR(qarvd_linear_large, 64, 64, 3)
LINEAR(qarvd_linear_small, 32, 32, 4)

#define ATTENTION(NAME, HEAD_DIM, TYPE, BITS)                                                 \
  KERNEL __launch_bounds__(ATTENTION_THREADS, 2) NAME(const AttentionArguments p) {           \
    SHARED_MEMORY(memory);                                                                    \
    Attention<HEAD_DIM, TYPE, BITS>(p, memory).run();                                         \
  }
ATTENTION(qarvd_attention_64_fp16_kv8, 64, FLOAT16, 8)
ATTENTION(qarvd_attention_64_fp16_kv4, 64, FLOAT16, 4)
ATTENTION(qarvd_attention_128_fp16_kv8, 128, FLOAT16, 8)
ATTENTION(qarvd_attention_128_fp16_kv4, 128, FLOAT16, 4)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
ATTENTION(qarvd_attention_64_bf16_kv8, 64, BFLOAT16, 8)
ATTENTION(qarvd_attention_64_bf16_kv4, 64, BFLOAT16, 4)
ATTENTION(qarvd_attention_128_bf16_kv8, 128, BFLOAT16, 8)
ATTENTION(qarvd_attention_128_bf16_kv4, 128, BFLOAT16, 4)
#endif
