"""Connects Airflow to the service: the address and token of a connection, and clients made of them."""
