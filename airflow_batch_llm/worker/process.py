"""A worker as a process."""

from __future__ import annotations

import asyncio

from airflow_batch_llm.errors import BatchLLMError
from airflow_batch_llm.settings import WorkerSettings
from airflow_batch_llm.worker.engine import Engine
from airflow_batch_llm.worker.engine_watch import EngineWatch
from airflow_batch_llm.worker.identity import engine_identity
from airflow_batch_llm.worker.runner import Runner
from airflow_batch_llm.worker.service_link import ServiceLink
from airflow_batch_llm.worker.stall import Stall
from airflow_batch_llm.worker.vllm_process import VllmProcess


def work(settings: WorkerSettings) -> None:
    """Works until SIGTERM or SIGINT."""
    settings.home.mkdir(parents=True, exist_ok=True)
    link = ServiceLink(settings.url, settings.token)
    try:
        asyncio.run(_runner(settings, link).run())
    except* BatchLLMError as group:
        raise group.exceptions[0] from group
    finally:
        link.close()


def _runner(settings: WorkerSettings, link: ServiceLink) -> Runner:
    wanted = settings.engine
    if wanted.endpoint is not None:
        engine = Engine(
            model=wanted.served_model_name,
            base_url=wanted.endpoint.rstrip("/").removesuffix("/v1"),
            timeout_seconds=wanted.row_timeout,
        )
        return Runner(settings, link, engine, EngineWatch(None), identity=None)
    socket = settings.home / "engine.sock"
    engine = Engine(model=wanted.served_model_name, socket=socket, timeout_seconds=wanted.row_timeout)
    process = VllmProcess(wanted, socket, settings.home / "engine.log")
    identity = engine_identity(wanted.model, wanted.arguments)
    return Runner(settings, link, engine, EngineWatch(process, Stall(wanted.stall_seconds)), identity=identity)
