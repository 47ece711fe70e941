# The service in a container, on the CPU: everything comes from package registries, nothing runs as root.
#
#   docker build -t focaldet .
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/runs/cells:/run_folder:ro" -e FOCALDET_TOKEN=... focaldet
#
# An exported file needs its library (onnx or openvino), and its name, by whose suffix it is known:
#
#   docker build --build-arg EXTRAS=serve,onnx -t focaldet .
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD:/files:ro" -e FOCALDET_TOKEN=... focaldet /files/cells.onnx --host 0.0.0.0
#
# A read-only file system will do: docker run --read-only --tmpfs /tmp …
FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 MPLCONFIGDIR=/tmp
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
ARG EXTRAS=serve
RUN pip install --constraint constraints.txt ".[${EXTRAS}]" \
 && useradd --system --uid 10001 --no-create-home focaldet
USER 10001

EXPOSE 8000
# The port is that of the command, which may have another --port than the default.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
  CMD ["python", "-c", "import re, urllib.request as r; words = open('/proc/1/cmdline').read(); port = (re.findall('--port[=\\0]([0-9]+)', words) or ['8000'])[-1]; r.urlopen('http://127.0.0.1:' + port + '/healthz', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["focaldet", "serve"]
CMD ["/run_folder", "--host", "0.0.0.0"]
