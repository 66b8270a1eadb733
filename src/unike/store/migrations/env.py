"""Run by Alembic: the steps are taken on the connection that it is handed, within its transaction."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], version_table="unike_alembic")
context.run_migrations()
