"""Talks to the service; knows no Airflow."""
