"""What Airflow loads by itself. Imported in every Airflow process, so it stays light."""
