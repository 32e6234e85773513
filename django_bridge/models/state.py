# mypy: disallow-subclassing-any=False
# ruff: noqa: RUF012  Django's own form of ``Meta``
"""What the store and the monitor keep beside the records: groups, sums, alerts, shells."""

from __future__ import annotations

from django.db import models

from django_bridge.models.columns import ID, MESSAGE, NAME, PREFIX, WORD, KeyField, StoreManager


class Alert(models.Model):
    """An alert and its state."""

    id = KeyField(primary_key=True, max_length=ID)
    rule = models.CharField(max_length=NAME, default="", blank=True)
    subject = models.CharField(max_length=NAME, default="", blank=True)
    state = models.CharField(max_length=WORD, default="", blank=True)
    severity = models.CharField(max_length=WORD, default="", blank=True)
    text = models.TextField(default="", blank=True)
    value = models.FloatField(default=0.0)
    threshold = models.FloatField(default=0.0)
    since_s = models.FloatField(default=0.0)
    fired_at_s = models.FloatField(null=True, blank=True)
    resolved_at_s = models.FloatField(null=True, blank=True)
    acknowledged_by = models.CharField(max_length=NAME, default="", blank=True)
    acknowledged_at_s = models.FloatField(null=True, blank=True)
    silenced_until_s = models.FloatField(null=True, blank=True)
    link = models.CharField(max_length=NAME, default="", blank=True)
    count = models.BigIntegerField(default=0)

    objects = StoreManager()

    class Meta:
        db_table = PREFIX + "alerts"
        verbose_name = "alert"
        verbose_name_plural = "alerts"
        indexes = [
            models.Index(fields=["since_s", "id"], name="ct_alerts_since"),
            models.Index(fields=["state", "since_s", "id"], name="ct_alerts_state"),
        ]

    def __str__(self) -> str:
        return str(self.subject)


class AuditEntry(models.Model):
    """A command that somebody gave to a process."""

    id = KeyField(primary_key=True, max_length=ID)
    at_s = models.FloatField(default=0.0)
    place = models.CharField(max_length=WORD, default="", blank=True)
    process = models.CharField(max_length=ID, default="", blank=True)
    failure = models.CharField(max_length=ID, default="", blank=True)
    session = models.CharField(max_length=ID, default="", blank=True)
    username = models.CharField(max_length=NAME, default="", blank=True)
    command = models.TextField(default="", blank=True)
    verdict = models.CharField(max_length=NAME, default="", blank=True)

    objects = StoreManager()

    class Meta:
        db_table = PREFIX + "audit"
        verbose_name = "audit entry"
        verbose_name_plural = "audit entries"
        indexes = [
            models.Index(fields=["at_s", "id"], name="ct_audit_at"),
        ]


class Delivery(models.Model):
    """One attempt to deliver an alert."""

    id = KeyField(primary_key=True, max_length=ID)
    alert = models.CharField(max_length=ID, default="", blank=True)
    channel = models.CharField(max_length=NAME, default="", blank=True)
    at_s = models.FloatField(default=0.0)
    ok = models.BooleanField(default=False)
    error = models.TextField(default="", blank=True)
    attempt = models.BigIntegerField(default=0)

    objects = StoreManager()

    class Meta:
        db_table = PREFIX + "deliveries"
        verbose_name = "delivery"
        verbose_name_plural = "deliveries"
        indexes = [
            models.Index(fields=["alert", "at_s", "id"], name="ct_deliveries_alert"),
            models.Index(fields=["at_s", "id"], name="ct_deliveries_at"),
        ]


class Group(models.Model):
    """Failures that share a fingerprint."""

    fingerprint = KeyField(primary_key=True, max_length=ID)
    kind = models.CharField(max_length=WORD, default="", blank=True)
    name = models.CharField(max_length=NAME, default="", blank=True)
    exception_type = models.CharField(max_length=NAME, default="", blank=True)
    exception_module = models.CharField(max_length=NAME, default="", blank=True)
    exception_message = models.CharField(max_length=MESSAGE, default="", blank=True)
    outcome = models.CharField(max_length=WORD, default="", blank=True)
    count = models.BigIntegerField(default=0)
    first_seen_s = models.FloatField(default=0.0)
    last_seen_s = models.FloatField(default=0.0)
    latest_id = models.CharField(max_length=ID, default="", blank=True)
    resolved_at_s = models.FloatField(null=True, blank=True)
    resolved_by = models.CharField(max_length=NAME, default="", blank=True)

    objects = StoreManager()

    class Meta:
        db_table = PREFIX + "groups"
        verbose_name = "group of failures"
        verbose_name_plural = "groups of failures"
        indexes = [
            models.Index(fields=["last_seen_s", "fingerprint"], name="ct_groups_seen"),
        ]

    def __str__(self) -> str:
        return str(self.name)


class LeakState(models.Model):
    """A leak that somebody resolved, or a name to look at again."""

    id = KeyField(primary_key=True, max_length=ID)
    kind = models.CharField(max_length=WORD, default="", blank=True)
    name = models.CharField(max_length=NAME, default="", blank=True)
    at_s = models.FloatField(default=0.0)
    username = models.CharField(max_length=NAME, default="", blank=True)

    objects = StoreManager()

    class Meta:
        db_table = PREFIX + "leak_state"
        verbose_name = "state of a leak"
        verbose_name_plural = "states of leaks"


class StoreFact(models.Model):
    """What the store knows of itself, such as its schema's version."""

    id = KeyField(primary_key=True, max_length=ID)
    value = models.TextField(default="", blank=True)

    objects = StoreManager()

    class Meta:
        db_table = PREFIX + "meta"
        verbose_name = "fact of the store"
        verbose_name_plural = "facts of the store"


class ShellLine(models.Model):
    """A line of a shell's transcript."""

    id = KeyField(primary_key=True, max_length=90)
    shell = models.CharField(max_length=ID, default="", blank=True)
    seq = models.BigIntegerField(default=0)
    at_s = models.FloatField(default=0.0)
    username = models.CharField(max_length=NAME, default="", blank=True)
    kind = models.CharField(max_length=WORD, default="", blank=True)
    text = models.TextField(default="", blank=True)

    objects = StoreManager()

    class Meta:
        db_table = PREFIX + "shell_lines"
        verbose_name = "line of a shell"
        verbose_name_plural = "lines of shells"
        indexes = [
            models.Index(fields=["shell", "seq"], name="ct_shell_lines_shell"),
        ]


class Shell(models.Model):
    """A shell session over a failure."""

    id = KeyField(primary_key=True, max_length=ID)
    failure = models.CharField(max_length=ID, default="", blank=True)
    mode = models.CharField(max_length=WORD, default="", blank=True)
    started_at_s = models.FloatField(default=0.0)
    ended_at_s = models.FloatField(null=True, blank=True)
    users = models.TextField(default="", blank=True)

    objects = StoreManager()

    class Meta:
        db_table = PREFIX + "shells"
        verbose_name = "shell"
        verbose_name_plural = "shells"
        indexes = [
            models.Index(fields=["failure", "started_at_s", "id"], name="ct_shells_failure"),
            models.Index(fields=["started_at_s", "id"], name="ct_shells_started"),
        ]


class Tally(models.Model):
    """A running sum."""

    id = KeyField(primary_key=True, max_length=200)
    value = models.BigIntegerField(default=0)

    objects = StoreManager()

    class Meta:
        db_table = PREFIX + "tallies"
        verbose_name = "tally"
        verbose_name_plural = "tallies"


class Trend(models.Model):
    """How often a group failed in an hour."""

    id = KeyField(primary_key=True, max_length=ID)
    fingerprint = models.CharField(max_length=ID, default="", blank=True)
    hour_s = models.BigIntegerField(default=0)
    count = models.BigIntegerField(default=0)

    objects = StoreManager()

    class Meta:
        db_table = PREFIX + "trends"
        verbose_name = "trend"
        verbose_name_plural = "trends"
        indexes = [
            models.Index(fields=["hour_s"], name="ct_trends_hour"),
            models.Index(fields=["fingerprint", "hour_s"], name="ct_trends_print"),
        ]
