"""Who runs quantized linears: `registry.choose` takes the first backend that does not refuse."""
