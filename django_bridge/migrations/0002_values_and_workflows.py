# mypy: disallow-subclassing-any=False
# ruff: noqa: RUF012  Django's own form of a migration
"""Values of failures for the search, and where a failed task stood in its workflow."""

from __future__ import annotations

from typing import Any

from django.db import migrations, models

from django_bridge.collation import CompareByBytes
from django_bridge.models.columns import KeyField


class Migration(migrations.Migration):
    dependencies: list[tuple[str, str]] = [("django_bridge", "0001_initial")]

    operations: list[Any] = [
        migrations.CreateModel(
            name="FailureValues",
            fields=[
                ("id", KeyField(max_length=64, primary_key=True, serialize=False)),
                ("text", models.TextField(blank=True, default="")),
            ],
            options={
                "verbose_name": "values of a failure",
                "verbose_name_plural": "values of failures",
                "db_table": "celery_trace_failure_values",
            },
        ),
        migrations.AddField("failure", "group_id", models.CharField(blank=True, default="", max_length=255)),
        migrations.AddField("failure", "parent_id", models.CharField(blank=True, default="", max_length=255)),
        migrations.AddIndex("run", models.Index(fields=["root_id"], name="ct_runs_root")),
        CompareByBytes("FailureValues"),
    ]
