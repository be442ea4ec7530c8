# syntax=docker/dockerfile:1
#
# The server with its demo: docker build -t serve . && docker run -p 8000:8000 serve
#
# For an application of your own, build from it:
#
#     FROM serve
#     COPY requirements.txt .
#     USER root
#     RUN pip install -r requirements.txt
#     USER 10001:10001
#     COPY . .
#     CMD ["app:asgi", "--workers", "4"]
#
# Reload:  docker kill --signal HUP NAME, or docker exec NAME serve reload, which waits and tells how it went.
# Stop:    docker stop --time 40 NAME. Requests in progress have 30 seconds, and Docker's own patience is only 10.

# The full image has a C compiler, for the compiled core: without it, the build fails (`never` asks for pure Python).
FROM python:3.13 AS build
ARG SERVE_ASGI_COMPILE=always
WORKDIR /build
COPY pyproject.toml hatch_build.py compile_core.py README.md LICENSE ./
COPY server ./server
RUN pip wheel --no-cache-dir --no-deps --wheel-dir dist .
RUN python -m venv --without-pip /opt/serve \
    && PIP_PYTHON=/opt/serve/bin/python pip install --no-cache-dir dist/*.whl

FROM python:3.13-slim
COPY --from=build /opt/serve /opt/serve
# With PIP_PYTHON, pip installs beside the server. The port can be set with PORT, the workers with WEB_CONCURRENCY.
ENV PATH=/opt/serve/bin:/usr/local/bin:/usr/bin:/bin \
    PIP_PYTHON=/opt/serve/bin/python \
    SERVE_HOST=0.0.0.0 \
    PORT=8000
WORKDIR /app
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# Alive, also while it drains: whether it should be given traffic is another question, and /ping answers that.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-Ic", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT']), 2); c.request('GET', '/ping?live'); raise SystemExit(c.getresponse().status != 200)"]
# Exec form: the server is PID 1, gets the signals itself and reaps what is left to it; no shell and no init is needed.
ENTRYPOINT ["serve"]
CMD ["serve_asgi.demo:asgi", "--workers", "4"]
