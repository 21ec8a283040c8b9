"""From full-precision weights to quantized ones: outliers, scales, rounding, and which linears take part."""
