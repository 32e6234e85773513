# mypy: disallow-subclassing-any=False
# ruff: noqa: RUF012  Django's own form of a migration
"""What names kept in each day, and failures of a name by how they ended."""

from __future__ import annotations

from typing import Any

from django.db import migrations, models

from celery_trace.stores.day_sums import of_totals
from django_bridge.collation import CompareByBytes
from django_bridge.models.columns import KeyField


def add_up(apps: Any, schema_editor: Any) -> None:
    """The days begin with the totals that are there."""
    alias = schema_editor.connection.alias
    totals = apps.get_model("django_bridge", "Total").objects.using(alias).filter(gated__gt=0, concurrent=False)
    day = apps.get_model("django_bridge", "Day")
    values = totals.values_list("kind", "name", "bucket_s", "runs", "gated", "kept_bytes")
    day.objects.using(alias).bulk_create([day(**row) for row in of_totals(values.iterator())], batch_size=500)


def nothing(apps: Any, schema_editor: Any) -> None:
    """Nothing to undo."""


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
        migrations.RunPython(add_up, nothing),
    ]
