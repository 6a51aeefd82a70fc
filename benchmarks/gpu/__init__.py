"""`python -m benchmarks gpu`: prove the GPU path in one call. It checks the numbers, then measures, and compares what
it found with the targets. It needs PyTorch; without Triton, torchvision or PyAV it skips by name what needs them.
`code` stands alone: it compiles kernels, and needs no GPU."""
