"""What a database's tables look like, in words that are the same for every way of making them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

PREFIX = "celery_trace_"

_FAMILIES: tuple[tuple[type, str], ...] = (
    (sa.types.LargeBinary, "bytes"),
    (sa.types.Boolean, "boolean"),
    (sa.types.Text, "long text"),
    (sa.types.String, "text"),
    (sa.types.BigInteger, "whole number"),
    (sa.types.Float, "number"),
    (sa.types.Numeric, "number"),
)


def _type(column: Any, dialect: str) -> str:
    kind = column["type"]
    name = type(kind).__name__.upper()
    if "BLOB" in name or "BYTEA" in name:
        return "bytes"
    if dialect == "mysql" and name == "TINYINT":
        return "boolean"
    family = next((word for base, word in _FAMILIES if isinstance(kind, base)), name)
    if family == "text":
        return f"text of {kind.length}"
    if family == "long text" and dialect == "mysql":
        return f"long text ({name})"
    return family


def tables_of(engine: sa.Engine) -> dict[str, Any]:
    """Our tables: columns with type and nullability, primary key, indexes; the migrators' own tables left out."""
    inspector = sa.inspect(engine)
    dialect = engine.dialect.name
    found: dict[str, Any] = {}
    for table in inspector.get_table_names():
        if not table.startswith(PREFIX) or table == PREFIX + "alembic":
            continue
        facts = {
            "columns": {
                column["name"]: (_type(column, dialect), column["nullable"]) for column in inspector.get_columns(table)
            },
            "key": inspector.get_pk_constraint(table)["constrained_columns"],
            "indexes": {
                index["name"]: (index["column_names"], bool(index["unique"])) for index in inspector.get_indexes(table)
            },
            "refers": inspector.get_foreign_keys(table),
        }
        if dialect == "mysql":
            with engine.connect() as connection:
                facts["collations"] = set(
                    connection.scalars(
                        sa.text(
                            "SELECT DISTINCT collation_name FROM information_schema.columns WHERE table_schema = "
                            "DATABASE() AND table_name = :table AND collation_name IS NOT NULL"
                        ),
                        {"table": table},
                    )
                )
        found[table] = facts
    return found
