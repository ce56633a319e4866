"""What Alembic runs for a migration: on the connection that `sakuga.jobstore.migrate` gives it."""

from alembic import context

from sakuga.jobstore.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite alters a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
