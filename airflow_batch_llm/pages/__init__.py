"""The pages: hand-written ES modules in ``static``, the same in Airflow and at the service itself."""
