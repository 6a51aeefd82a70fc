# vswin-extract with all that it needs on a GPU but the driver:
#
#   docker build --build-arg WEIGHTS="t-k400" --tag vswin-extract .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/data" vswin-extract videos/ out.h5 --weights t-k400
#
# Not on nvidia/cuda: PyTorch's wheels bring the CUDA runtime that they were built with, and a second one would lie
# beside it for gigabytes, unused. This image has Python's headers, too, which Triton compiles against on its first use.
FROM python:3.11-slim-bookworm

# wget is what KubeRay asks a pod with whether it is well
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc=4:12.2.* libc6-dev=2.36-* wget=1.21.* \
    && rm -rf /var/lib/apt/lists/*

# what nvidia/cuda would set, so that the driver is mounted; what is compiled does not go to the weights
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    VSWIN_WEIGHTS_DIR=/weights \
    TORCHINDUCTOR_CACHE_DIR=/tmp/compiled \
    TRITON_CACHE_DIR=/tmp/compiled/triton

RUN useradd --create-home --uid 1000 vswin \
    && install --directory --owner=vswin /weights /data

# extras of pyproject.toml; kuberay is for pods of examples/ray/rayjob.yaml
ARG EXTRAS=ray,kuberay,remote
COPY pyproject.toml README.md LICENSE /src/
COPY vswin_extract /src/vswin_extract
COPY weights/nano.safetensors /src/weights/
RUN pip install --no-cache-dir "/src[${EXTRAS}]"

USER 1000
WORKDIR /data

# names of `vswin weights list`, with spaces between them; none: mount a directory of them at /weights
ARG WEIGHTS=""
RUN for name in ${WEIGHTS}; do vswin weights pull "${name}" || exit 1; done

HEALTHCHECK NONE
ENTRYPOINT ["vswin-extract"]
CMD ["--help"]
