# The service: HTTP API and duties. It needs no GPU. Build from the root of the repository:
#   docker build -f docker/service.Dockerfile -t batch-llm-service .
FROM python:3.12-slim

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY airflow_batch_llm airflow_batch_llm
RUN pip install --no-cache-dir ".[service]"

# A folder of the host mounted at /data must be writable by this user id: results are written there.
RUN useradd --uid 1000 --create-home batch-llm \
 && install --directory --owner=batch-llm --mode=0700 /var/lib/batch-llm \
 && install --directory --owner=batch-llm /data
USER batch-llm
WORKDIR /var/lib/batch-llm
VOLUME /var/lib/batch-llm
EXPOSE 8765

# The image has no curl; urlopen raises, and so exits with 1, on anything but a good answer.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
  CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8765/healthz', timeout=4)"]

CMD ["batch-llm", "serve", "--host", "0.0.0.0", "--home", "/var/lib/batch-llm", "--data-root", "/data"]
