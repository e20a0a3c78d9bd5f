# The worker and the vLLM that it starts, for one host with an NVIDIA GPU. Build from the root of the repository:
#   docker build -f docker/worker.Dockerfile -t batch-llm-worker .
FROM vllm/vllm-openai:v0.32.0

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY airflow_batch_llm airflow_batch_llm
# An environment of its own leaves the versions that vLLM pins alone. The worker finds `vllm` on the PATH.
RUN python3 -m venv /opt/batch-llm \
 && /opt/batch-llm/bin/pip install --no-cache-dir ".[worker]" \
 && ln -s /opt/batch-llm/bin/batch-llm /usr/local/bin/batch-llm

RUN useradd --create-home batch-llm \
 && install --directory --owner=batch-llm --mode=0700 /var/lib/batch-llm \
 && install --directory --owner=batch-llm /models
USER batch-llm
WORKDIR /var/lib/batch-llm
# Downloaded weights stay in the volume, so that a new container does not load them again.
ENV HF_HOME=/models BATCH_LLM_HOME=/var/lib/batch-llm
VOLUME /models

# The base image starts `vllm serve` itself; here the worker does. It says what to do by BATCH_LLM_URL, BATCH_LLM_TOKEN
# and its arguments, as compose.yaml shows.
ENTRYPOINT ["batch-llm", "work"]
