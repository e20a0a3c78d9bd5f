"""LLM steps for Airflow Dags, done by a pool of your own GPUs."""

__version__ = "0.1.0"
