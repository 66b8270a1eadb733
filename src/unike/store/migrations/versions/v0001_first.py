"""The first tables, and a log that can only grow."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

GUARDED = ("unike_log", "unike_changes")
"""Of these rows are added alone."""


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "unike_edits",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("described", sa.JSON, nullable=False),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("picture", sa.String(64)),
        sa.Column("picture_name", sa.Text),
        sa.Column("editor", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("tensors", sa.String(64), nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("added_at", sa.String(32), nullable=False),
    )
    op.create_table(
        "unike_changes",
        sa.Column("set", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("edit", sa.String(16), sa.ForeignKey("unike_edits.id"), nullable=False),
        sa.Column("position", sa.Integer),
        sa.PrimaryKeyConstraint("set", "version", "edit"),
    )
    op.create_index("unike_changes_of_edits", "unike_changes", ["edit"])
    op.create_table(
        "unike_log",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("set", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("edit", sa.String(16)),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
        sa.Column("seal", sa.String(64), nullable=False),
    )
    op.create_table(
        "unike_canaries",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("picture", sa.String(64)),
    )
    op.create_table(
        "unike_about",
        sa.Column("key", sa.String(32), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    guard(op.get_bind().dialect.name)


def guard(dialect: str) -> None:
    """Let the database itself refuse to change or delete a row of `GUARDED`."""
    if dialect == "postgresql":
        op.execute(
            "CREATE FUNCTION unike_only_grows() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION '% only grows', TG_TABLE_NAME; END $$"
        )
    for table in GUARDED:
        if dialect == "postgresql":
            op.execute(
                f"CREATE TRIGGER {table}_only_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
                "FOR EACH STATEMENT EXECUTE FUNCTION unike_only_grows()"
            )
            continue
        for event in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{event.lower()} BEFORE {event} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} only grows'); END"
            )
