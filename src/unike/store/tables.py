"""The tables of a store, as the newest migration leaves them."""

from sqlalchemy import JSON, Column, ForeignKey, Index, Integer, MetaData, PrimaryKeyConstraint, String, Table, Text

METADATA = MetaData()

EDITS = Table(
    "unike_edits",
    METADATA,
    Column("id", String(16), primary_key=True),
    Column("described", JSON, nullable=False),
    Column("prompt", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("picture", String(64)),
    Column("picture_name", Text),
    Column("editor", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("tensors", String(64), nullable=False),
    Column("tags", JSON, nullable=False),
    Column("author", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("added_at", String(32), nullable=False),
)
"""Every edit that was ever added: rolling back needs those that were revoked, too."""

CHANGES = Table(
    "unike_changes",
    METADATA,
    Column("set", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("edit", String(16), ForeignKey("unike_edits.id"), nullable=False),
    Column("position", Integer),
    PrimaryKeyConstraint("set", "version", "edit"),
    Index("unike_changes_of_edits", "edit"),
)
"""What each version of a set changed: the edit stands at a position of the stack from then on, or, null, nowhere."""

LOG = Table(
    "unike_log",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("at", String(32), nullable=False),
    Column("author", Text, nullable=False),
    Column("action", String(32), nullable=False),
    Column("set", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("edit", String(16)),
    Column("reason", Text, nullable=False),
    Column("detail", JSON, nullable=False),
    Column("seal", String(64), nullable=False),
)
"""Who did what when. Rows are added alone: the database itself refuses to change or delete one."""

CANARIES = Table(
    "unike_canaries",
    METADATA,
    Column("id", String(16), primary_key=True),
    Column("prompt", Text, nullable=False),
    Column("picture", String(64)),
)

ABOUT = Table(
    "unike_about", METADATA, Column("key", String(32), primary_key=True), Column("value", Text, nullable=False)
)
"""Of the store itself: where its blobs are."""
