"""Quantize autoregressive video diffusion models and stream them."""

__version__ = "0.1.0"
