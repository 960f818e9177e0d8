# Three targets, one for each place: docker build --target agent|coordinator|export .
# TORCH_INDEX: an index with CPU builds of torch (PyTorch publishes one; see the Makefile).
# BASE: another image with Python and pip. `make test-docker` runs these steps.

ARG BASE=python:3.11-slim
FROM ${BASE} AS base
ENV ORT_DISABLE_TELEMETRY=1
RUN useradd --create-home fedclip && install --directory --owner=fedclip /data
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY fedclip_edge fedclip_edge
ENTRYPOINT ["fedclip-edge"]

FROM base AS coordinator
RUN pip install --no-cache-dir -c constraints.txt '.[serve]'
USER fedclip
WORKDIR /data
CMD ["serve", "fleet.toml"]

FROM base AS agent
ARG TORCH_INDEX=""
RUN pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--extra-index-url $TORCH_INDEX} torch \
    && pip install --no-cache-dir -c constraints.txt '.[agent]'
USER fedclip
WORKDIR /data
CMD ["agent", "agent.toml"]

FROM base AS export
ARG TORCH_INDEX=""
RUN pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--extra-index-url $TORCH_INDEX} torch \
    && pip install --no-cache-dir -c constraints.txt '.[export]'
USER fedclip
WORKDIR /data
CMD ["export", "--help"]
