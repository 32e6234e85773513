# mypy: disallow-subclassing-any=False
# ruff: noqa: RUF012  Django's own form of a migration
"""What one worker's runs kept: rollups by process."""

from __future__ import annotations

from typing import Any

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies: list[tuple[str, str]] = [("django_bridge", "0004_days")]

    operations: list[Any] = [
        migrations.AddIndex("rollup", models.Index(fields=["process", "bucket_s"], name="ct_rollups_process")),
    ]
