# mypy: disallow-subclassing-any=False
# ruff: noqa: RUF012  Django's own form of a migration
"""A table that version 7 drops again, and failures of a name by how they ended."""

from __future__ import annotations

from typing import Any

from django.db import migrations, models

from django_bridge.collation import CompareByBytes
from django_bridge.models.columns import KeyField


class Migration(migrations.Migration):
    dependencies: list[tuple[str, str]] = [("django_bridge", "0003_queues_releases_and_sorts")]

    operations: list[Any] = [
        migrations.CreateModel(
            name="Day",
            fields=[
                ("id", KeyField(max_length=64, primary_key=True, serialize=False)),
                ("kind", models.CharField(blank=True, default="", max_length=32)),
                ("name", models.CharField(blank=True, default="", max_length=255)),
                ("day_s", models.BigIntegerField(default=0)),
                ("runs", models.BigIntegerField(default=0)),
                ("gated", models.BigIntegerField(default=0)),
                ("kept_bytes", models.BigIntegerField(default=0)),
            ],
            options={
                "verbose_name": "day of a name",
                "verbose_name_plural": "days of names",
                "db_table": "celery_trace_days",
                "indexes": [models.Index(fields=["day_s"], name="ct_days_day")],
            },
        ),
        migrations.AddIndex(
            "failure", models.Index(fields=["name", "outcome", "at_s", "id"], name="ct_failures_ended")
        ),
        CompareByBytes("Day"),
    ]
