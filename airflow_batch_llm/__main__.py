"""``python -m airflow_batch_llm`` is ``batch-llm``."""

from airflow_batch_llm.cli import main

main()
