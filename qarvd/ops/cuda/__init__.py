"""CUDA kernels without a compiler at hand: prebuilt or made by NVRTC, loaded and launched through the driver."""
