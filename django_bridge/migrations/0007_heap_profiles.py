# mypy: disallow-subclassing-any=False
# ruff: noqa: RUF012  Django's own form of a migration
"""What names have left alive by call stack, instead of what measured runs kept in each day."""

from __future__ import annotations

from typing import Any

from django.db import migrations, models

from django_bridge.collation import CompareByBytes
from django_bridge.models.columns import KeyField


class Migration(migrations.Migration):
    dependencies: list[tuple[str, str]] = [("django_bridge", "0006_shared_captures")]

    operations: list[Any] = [
        migrations.CreateModel(
            name="HeapProfile",
            fields=[
                ("id", KeyField(max_length=64, primary_key=True, serialize=False)),
                ("process", models.CharField(blank=True, default="", max_length=64)),
                ("kind", models.CharField(blank=True, default="", max_length=32)),
                ("name", models.CharField(blank=True, default="", max_length=255)),
                ("release", models.CharField(blank=True, default="", max_length=255)),
                ("at_s", models.FloatField(default=0.0)),
                ("runs", models.BigIntegerField(default=0)),
                ("bytes", models.BigIntegerField(default=0)),
                ("payload", models.BinaryField(null=True)),
            ],
            options={
                "verbose_name": "heap profile",
                "verbose_name_plural": "heap profiles",
                "db_table": "celery_trace_heap_profiles",
                "indexes": [
                    models.Index(fields=["at_s"], name="ct_heap_profiles_at"),
                    models.Index(fields=["name", "kind", "at_s", "id"], name="ct_heap_profiles_name"),
                    models.Index(fields=["process"], name="ct_heap_profiles_process"),
                ],
            },
        ),
        CompareByBytes("HeapProfile"),
        migrations.DeleteModel("Day"),
    ]
