# Build from the checkout's top: docker build -f configs/deployment/docker/server.Dockerfile -t astrofed-server .
FROM python:3.11.14-slim-bookworm AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /source
COPY . .
RUN python -m venv /opt/astrofed \
    && /opt/astrofed/bin/pip install --no-cache-dir -c constraints.txt torch \
    && /opt/astrofed/bin/pip install --no-cache-dir -c constraints.txt .

FROM python:3.11.14-slim-bookworm
COPY --from=build /opt/astrofed /opt/astrofed
RUN useradd --system --uid 10001 --home-dir /var/lib/astrofed --create-home astrofed
ENV PATH=/opt/astrofed/bin:$PATH \
    FLWR_TELEMETRY_ENABLED=0 \
    FLWR_DISABLE_UPDATE_CHECK=1 \
    FLWR_HOME=/var/lib/astrofed/flower \
    NUMBA_CACHE_DIR=/var/lib/astrofed/cache \
    MPLCONFIGDIR=/var/lib/astrofed/cache
USER 10001
VOLUME /var/lib/astrofed
EXPOSE 8443
ENTRYPOINT ["astrofed", "server"]
CMD ["start", "--home", "/var/lib/astrofed/server"]
