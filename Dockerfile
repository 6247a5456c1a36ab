# boxloss-server in a container: target cpu, or target cuda for an NVIDIA GPU.
#
#   docker build --target cpu --tag boxloss-server:cpu .
#   docker run --rm --publish 127.0.0.1:50051:50051 --publish 127.0.0.1:9464:9464 boxloss-server:cpu
#
#   docker build --target cuda --tag boxloss-server:cuda .
#   docker run --rm --gpus all --publish 127.0.0.1:50051:50051 --publish 127.0.0.1:9464:9464 boxloss-server:cuda
#
# Settings are variables (--env BOXLOSS_BATCH_WINDOW_MS=2) or flags after the image's name.
# Accepted requests have 30 s to be answered at the end; docker stop gives 10 unless asked: docker stop --time 40.
#
# The client's command is in the image, and the demo runs in it:
#
#   docker exec CONTAINER boxloss ping
#   docker run --rm --volume "$PWD/examples:/examples:ro" --entrypoint python boxloss-server:cpu /examples/demo.py

# The tag says which it is, the digest which build of it. docs/scaling.md says how to take a newer one.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b


# Where everything is installed: what deploy/requirements lists, each file of the hash that is written there. Only what is
# installed leaves the build stages.
FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
COPY deploy/requirements requirements
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN pip install --require-hashes --requirement requirements/build.txt && python -m venv --without-pip /opt/boxloss

# PyPI's torch for Linux brings its CUDA libraries; the driver comes from outside, from the NVIDIA container runtime.
FROM build AS packages-cuda
RUN pip --python /opt/boxloss/bin/python install --require-hashes --requirement requirements/cuda.txt

# The same torch without CUDA, much smaller, is on an index of its own. To take it from a mirror:
# docker build --build-arg TORCH_INDEX=https://...
FROM build AS packages-cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip --python /opt/boxloss/bin/python install --require-hashes --no-deps \
        --index-url "${TORCH_INDEX}" --requirement requirements/torch-cpu.txt \
    && pip --python /opt/boxloss/bin/python install --require-hashes --requirement requirements/cpu.txt

# requirements/build.txt has the build backend: nothing is fetched here.
FROM build AS code
COPY client client
COPY server server
RUN pip wheel --no-deps --no-build-isolation --wheel-dir wheels ./client ./server \
    && pip --python /opt/boxloss/bin/python install --prefix /code --no-deps --no-index wheels/*

# The common losses, compiled for any x86-64 CPU with AVX2, or for the builder's where that is another. Then what only
# compilers and torch's own tests need is left out.
FROM packages-cpu AS compiled
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY --from=code /code /opt/boxloss
RUN /opt/boxloss/bin/python -I -m boxloss_server.engine.kernels /opt/boxloss/kernels \
    && chmod -R a+rX /opt/boxloss/kernels \
    && rm -rf /opt/boxloss/lib/python3*/site-packages/torch/include /opt/boxloss/lib/python3*/site-packages/torch/test


# What both images have in common.
FROM ${PYTHON_IMAGE} AS runtime
LABEL org.opencontainers.image.title="boxloss-server" \
      org.opencontainers.image.description="Bounding-box regression losses, gradients and IoU matrices over gRPC" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT"
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin boxloss
COPY deploy/healthcheck.py /opt/healthcheck.py
ENV PATH=/opt/boxloss/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    BOXLOSS_HOST=0.0.0.0 \
    BOXLOSS_METRICS_HOST=0.0.0.0
EXPOSE 50051 9464
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "/opt/healthcheck.py"]
ENTRYPOINT ["boxloss-server"]

# Without a GPU it ends with an error rather than compute on the CPU.
FROM runtime AS cuda
ENV BOXLOSS_DEVICE=cuda NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=packages-cuda /opt/boxloss /opt/boxloss
COPY --from=code /code /opt/boxloss

FROM runtime AS cpu
ENV BOXLOSS_KERNEL_CACHE=/opt/boxloss/kernels
COPY --from=compiled /opt/boxloss /opt/boxloss
