"""How Alembic reaches the store: over the connection that :meth:`Database.migrate` hands it."""

from alembic import context

from airflow_batch_llm.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
