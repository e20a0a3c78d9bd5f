"""Submits batches from Airflow tasks."""
