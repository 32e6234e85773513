# mypy: disallow-subclassing-any=False
# ruff: noqa: RUF012  Django's own form of a migration
"""What failures of a group have in common, stored once."""

from __future__ import annotations

from typing import Any

from django.db import migrations, models

from django_bridge.collation import CompareByBytes
from django_bridge.models.columns import KeyField


class Migration(migrations.Migration):
    dependencies: list[tuple[str, str]] = [("django_bridge", "0005_rollups_of_a_process")]

    operations: list[Any] = [
        migrations.CreateModel(
            name="SharedCapture",
            fields=[
                ("id", KeyField(max_length=64, primary_key=True, serialize=False)),
                ("fingerprint", models.CharField(blank=True, default="", max_length=64)),
                ("at_s", models.FloatField(default=0.0)),
                ("failures", models.BigIntegerField(default=0)),
                ("text", models.TextField(blank=True, default="")),
                ("payload", models.BinaryField(null=True)),
            ],
            options={
                "verbose_name": "shared capture",
                "verbose_name_plural": "shared captures",
                "db_table": "celery_trace_captures",
                "indexes": [models.Index(fields=["fingerprint", "at_s"], name="ct_captures_print")],
            },
        ),
        migrations.AddField("failure", "shared", models.CharField(blank=True, default="", max_length=64)),
        CompareByBytes("SharedCapture"),
    ]
