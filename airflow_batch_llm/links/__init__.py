"""Links from a task in Airflow's pages to its batch."""
