"""The model: clips of pixels come in, maps of features of each stage go out.

In the order of the data: `variants` has the published sizes as plain data; `swin3d` is Video Swin on one page, for
training and for reference values; `inference` says what a network for inference offers, and chooses the fastest one
that a device can run: `cpu` on a CPU (several clips at once by `threads`), `cuda` on a GPU in half precision (with the
kernels of `triton_attention`, which get from `windows` where each window's tokens are), `reference`, which is `swin3d`
as it stands, otherwise. `pooling` averages the maps.
All three networks for inference are made from the parameters of one `VideoSwin`, which they leave as they are.
`swin2d` is the Swin for images: it checks weights that were inflated from those of images.
"""
