# mypy: disallow-subclassing-any=False
# ruff: noqa: RUF012  Django's own form of a migration
"""Queues that names were seen in, what was deployed, and figures that leaks are sorted by."""

from __future__ import annotations

from typing import Any

from django.db import migrations, models
from django.db.models import Min

from django_bridge.collation import CompareByBytes
from django_bridge.models.columns import KeyField


def compute_leaks_again(apps: Any, schema_editor: Any) -> None:
    """The leak table is made from the windows: each name in it is computed once more when it is read next."""
    alias = schema_editor.connection.alias
    leaks = apps.get_model("django_bridge", "Leak").objects.using(alias)
    state = apps.get_model("django_bridge", "LeakState")
    state.objects.using(alias).bulk_create(
        [
            state(id=f"name:{row['key']}", kind=row["kind"], name=row["name"], at_s=0.0, username="0003")
            for row in leaks.values("kind", "name").annotate(key=Min("id"))
        ]
    )


def nothing(apps: Any, schema_editor: Any) -> None:
    """Nothing to undo."""


class Migration(migrations.Migration):
    dependencies: list[tuple[str, str]] = [("django_bridge", "0002_values_and_workflows")]

    operations: list[Any] = [
        migrations.CreateModel(
            name="Queue",
            fields=[
                ("id", KeyField(max_length=64, primary_key=True, serialize=False)),
                ("queue", models.CharField(blank=True, default="", max_length=255)),
                ("kind", models.CharField(blank=True, default="", max_length=32)),
                ("name", models.CharField(blank=True, default="", max_length=255)),
            ],
            options={
                "verbose_name": "queue of a name",
                "verbose_name_plural": "queues of names",
                "db_table": "celery_trace_queues",
                "indexes": [models.Index(fields=["queue", "name"], name="ct_queues_queue")],
            },
        ),
        migrations.AddField("process", "release", models.CharField(blank=True, default="", max_length=255)),
        migrations.AddField("leak", "kept_bytes_total", models.BigIntegerField(default=0)),
        migrations.AddField("leak", "runs", models.BigIntegerField(default=0)),
        CompareByBytes("Queue"),
        migrations.RunPython(compute_leaks_again, nothing),
    ]
