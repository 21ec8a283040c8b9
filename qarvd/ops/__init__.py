"""Quantized arithmetic: what each op means (`reference`), how torch calls it (`library`), who runs it fast."""
