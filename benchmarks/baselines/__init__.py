"""Other ways to quantize, simulated in floating point, for benchmarks/quality.py to compare with."""
