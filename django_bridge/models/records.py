# mypy: disallow-subclassing-any=False
# ruff: noqa: RUF012  Django's own form of ``Meta``
"""What traced processes wrote, and what the store adds up from it."""

from __future__ import annotations

from django.db import models

from django_bridge.models.columns import ID, MESSAGE, NAME, PREFIX, WORD, KeyField, StoreManager


class Failure(models.Model):
    """A failed run; its whole record stands in ``payload``, or what distinguishes it from a :class:`SharedCapture`."""

    id = KeyField(primary_key=True, max_length=ID)
    process = models.CharField(max_length=ID, default="", blank=True)
    kind = models.CharField(max_length=WORD, default="", blank=True)
    name = models.CharField(max_length=NAME, default="", blank=True)
    task_id = models.CharField(max_length=NAME, default="", blank=True)
    retries = models.BigIntegerField(default=0)
    root_id = models.CharField(max_length=NAME, default="", blank=True)
    parent_id = models.CharField(max_length=NAME, default="", blank=True)
    group_id = models.CharField(max_length=NAME, default="", blank=True)
    outcome = models.CharField(max_length=WORD, default="", blank=True)
    witness = models.CharField(max_length=WORD, default="", blank=True)
    exception_type = models.CharField(max_length=NAME, default="", blank=True)
    exception_module = models.CharField(max_length=NAME, default="", blank=True)
    exception_message = models.CharField(max_length=MESSAGE, default="", blank=True)
    fingerprint = models.CharField(max_length=ID, default="", blank=True)
    worker = models.CharField(max_length=NAME, default="", blank=True)
    pid = models.BigIntegerField(default=0)
    hostname = models.CharField(max_length=NAME, default="", blank=True)
    at_s = models.FloatField(default=0.0)
    shared = models.CharField(max_length=ID, default="", blank=True)
    payload = models.BinaryField(null=True)

    objects = StoreManager()

    class Meta:
        db_table = PREFIX + "failures"
        verbose_name = "failure"
        verbose_name_plural = "failures"
        indexes = [
            models.Index(fields=["at_s", "id"], name="ct_failures_at"),
            models.Index(fields=["name", "worker", "at_s", "id"], name="ct_failures_both"),
            models.Index(fields=["kind", "at_s", "id"], name="ct_failures_kind"),
            models.Index(fields=["name", "at_s", "id"], name="ct_failures_name"),
            models.Index(fields=["name", "outcome", "at_s", "id"], name="ct_failures_ended"),
            models.Index(fields=["outcome", "at_s", "id"], name="ct_failures_outcome"),
            models.Index(fields=["fingerprint", "at_s", "id"], name="ct_failures_print"),
            models.Index(fields=["process"], name="ct_failures_process"),
            models.Index(fields=["root_id"], name="ct_failures_root"),
            models.Index(fields=["task_id"], name="ct_failures_task"),
            models.Index(fields=["worker", "at_s", "id"], name="ct_failures_worker"),
        ]

    def __str__(self) -> str:
        return str(self.name)


class FailureValues(models.Model):
    """What a failure held, as short text for the search."""

    id = KeyField(primary_key=True, max_length=ID)
    text = models.TextField(default="", blank=True)

    objects = StoreManager()

    class Meta:
        db_table = PREFIX + "failure_values"
        verbose_name = "values of a failure"
        verbose_name_plural = "values of failures"


class Kept(models.Model):
    """A failure whose live objects a process holds."""

    id = KeyField(primary_key=True, max_length=130)
    process = models.CharField(max_length=ID, default="", blank=True)
    failure = models.CharField(max_length=ID, default="", blank=True)
    at_s = models.FloatField(default=0.0)
    until_s = models.FloatField(default=0.0)
    address = models.CharField(max_length=NAME, default="", blank=True)
    bytes = models.BigIntegerField(default=0)
    gone = models.CharField(max_length=WORD, default="", blank=True)

    objects = StoreManager()

    class Meta:
        db_table = PREFIX + "kept"
        verbose_name = "kept failure"
        verbose_name_plural = "kept failures"
        indexes = [
            models.Index(fields=["failure"], name="ct_kept_failure"),
            models.Index(fields=["until_s"], name="ct_kept_until"),
        ]


class Leak(models.Model):
    """A row of the leak table: a function of the windows."""

    id = KeyField(primary_key=True, max_length=ID)
    kind = models.CharField(max_length=WORD, default="", blank=True)
    name = models.CharField(max_length=NAME, default="", blank=True)
    verdict = models.CharField(max_length=WORD, default="", blank=True)
    rank = models.BigIntegerField(default=0)
    kept_bytes_per_run = models.BigIntegerField(default=0)
    kept_bytes_total = models.BigIntegerField(default=0)
    runs = models.BigIntegerField(default=0)
    last_seen_s = models.FloatField(default=0.0)
    place = models.CharField(max_length=MESSAGE, default="", blank=True)
    payload = models.BinaryField(null=True)

    objects = StoreManager()

    class Meta:
        db_table = PREFIX + "leaks"
        verbose_name = "leak"
        verbose_name_plural = "leaks"
        indexes = [
            models.Index(fields=["name", "kind"], name="ct_leaks_name"),
            models.Index(fields=["rank", "kept_bytes_per_run", "id"], name="ct_leaks_rank"),
        ]

    def __str__(self) -> str:
        return str(self.name)


class RunName(models.Model):
    """A name that ever ran."""

    id = KeyField(primary_key=True, max_length=ID)
    kind = models.CharField(max_length=WORD, default="", blank=True)
    name = models.CharField(max_length=NAME, default="", blank=True)
    runs = models.BigIntegerField(default=0)
    failed = models.BigIntegerField(default=0)

    objects = StoreManager()

    class Meta:
        db_table = PREFIX + "names"
        verbose_name = "name"
        verbose_name_plural = "names"
        indexes = [
            models.Index(fields=["name"], name="ct_names_name"),
        ]

    def __str__(self) -> str:
        return str(self.name)


class Process(models.Model):
    """A traced process, with what its latest sample said."""

    uid = KeyField(primary_key=True, max_length=ID)
    host = models.CharField(max_length=NAME, default="", blank=True)
    pid = models.BigIntegerField(default=0)
    worker = models.CharField(max_length=NAME, default="", blank=True)
    role = models.CharField(max_length=WORD, default="", blank=True)
    parent_uid = models.CharField(max_length=ID, default="", blank=True)
    python = models.CharField(max_length=NAME, default="", blank=True)
    counters = models.TextField(default="", blank=True)
    mode = models.CharField(max_length=WORD, default="", blank=True)
    release = models.CharField(max_length=NAME, default="", blank=True)
    started_at_s = models.FloatField(default=0.0)
    ended_at_s = models.FloatField(null=True, blank=True)
    ended_how = models.CharField(max_length=WORD, default="", blank=True)
    seen_at_s = models.FloatField(default=0.0)
    sampled_at_s = models.FloatField(null=True, blank=True)
    memory = models.TextField(default="", blank=True)
    running = models.CharField(max_length=NAME, default="", blank=True)
    runs = models.BigIntegerField(default=0)
    kept_failures = models.BigIntegerField(default=0)
    overhead_ratio = models.FloatField(default=0.0)

    objects = StoreManager()

    class Meta:
        db_table = PREFIX + "processes"
        verbose_name = "process"
        verbose_name_plural = "processes"
        indexes = [
            models.Index(fields=["seen_at_s", "uid"], name="ct_processes_seen"),
            models.Index(fields=["worker", "seen_at_s"], name="ct_processes_worker"),
        ]

    def __str__(self) -> str:
        return str(self.uid)


class Queue(models.Model):
    """A name that was seen in a queue of the broker."""

    id = KeyField(primary_key=True, max_length=ID)
    queue = models.CharField(max_length=NAME, default="", blank=True)
    kind = models.CharField(max_length=WORD, default="", blank=True)
    name = models.CharField(max_length=NAME, default="", blank=True)

    objects = StoreManager()

    class Meta:
        db_table = PREFIX + "queues"
        verbose_name = "queue of a name"
        verbose_name_plural = "queues of names"
        indexes = [
            models.Index(fields=["queue", "name"], name="ct_queues_queue"),
        ]

    def __str__(self) -> str:
        return str(self.queue)


class Rollup(models.Model):
    """A process's runs of one name in five minutes."""

    id = KeyField(primary_key=True, max_length=ID)
    process = models.CharField(max_length=ID, default="", blank=True)
    kind = models.CharField(max_length=WORD, default="", blank=True)
    name = models.CharField(max_length=NAME, default="", blank=True)
    bucket_s = models.BigIntegerField(default=0)
    seq = models.BigIntegerField(default=0)
    runs = models.BigIntegerField(default=0)
    failed = models.BigIntegerField(default=0)
    retried = models.BigIntegerField(default=0)
    duration_s = models.FloatField(default=0.0)
    duration_max_s = models.FloatField(default=0.0)
    durations = models.TextField(default="", blank=True)
    gated = models.BigIntegerField(default=0)
    kept_blocks = models.BigIntegerField(default=0)
    kept_bytes = models.BigIntegerField(default=0)
    rss_max_bytes = models.BigIntegerField(default=0)
    overhead_s = models.FloatField(default=0.0)
    concurrent = models.BooleanField(default=False)

    objects = StoreManager()

    class Meta:
        db_table = PREFIX + "rollups"
        verbose_name = "rollup"
        verbose_name_plural = "rollups"
        indexes = [
            models.Index(fields=["bucket_s"], name="ct_rollups_bucket"),
            models.Index(fields=["process", "bucket_s"], name="ct_rollups_process"),
        ]

    def __str__(self) -> str:
        return str(self.name)


class Run(models.Model):
    """One run that is kept by itself."""

    id = KeyField(primary_key=True, max_length=ID)
    process = models.CharField(max_length=ID, default="", blank=True)
    kind = models.CharField(max_length=WORD, default="", blank=True)
    name = models.CharField(max_length=NAME, default="", blank=True)
    task_id = models.CharField(max_length=NAME, default="", blank=True)
    retries = models.BigIntegerField(default=0)
    queue = models.CharField(max_length=NAME, default="", blank=True)
    root_id = models.CharField(max_length=NAME, default="", blank=True)
    started_at_s = models.FloatField(default=0.0)
    duration_s = models.FloatField(default=0.0)
    state = models.CharField(max_length=WORD, default="", blank=True)
    why = models.CharField(max_length=WORD, default="", blank=True)
    kept_blocks = models.BigIntegerField(null=True, blank=True)
    kept_bytes = models.BigIntegerField(null=True, blank=True)
    concurrent = models.BigIntegerField(default=0)
    payload = models.BinaryField(null=True)

    objects = StoreManager()

    class Meta:
        db_table = PREFIX + "runs"
        verbose_name = "run"
        verbose_name_plural = "runs"
        indexes = [
            models.Index(fields=["started_at_s", "id"], name="ct_runs_at"),
            models.Index(fields=["kind", "started_at_s", "id"], name="ct_runs_kind"),
            models.Index(fields=["name", "started_at_s", "id"], name="ct_runs_name"),
            models.Index(fields=["root_id"], name="ct_runs_root"),
            models.Index(fields=["task_id"], name="ct_runs_task"),
            models.Index(fields=["why", "started_at_s", "id"], name="ct_runs_why"),
        ]

    def __str__(self) -> str:
        return str(self.name)


class Sample(models.Model):
    """A point in a process's memory series."""

    id = KeyField(primary_key=True, max_length=ID)
    process = models.CharField(max_length=ID, default="", blank=True)
    at_s = models.FloatField(default=0.0)
    memory = models.TextField(default="", blank=True)
    runs = models.BigIntegerField(default=0)
    name = models.CharField(max_length=NAME, default="", blank=True)
    kept_failures = models.BigIntegerField(default=0)
    overhead_ratio = models.FloatField(default=0.0)

    objects = StoreManager()

    class Meta:
        db_table = PREFIX + "samples"
        verbose_name = "sample"
        verbose_name_plural = "samples"
        indexes = [
            models.Index(fields=["at_s"], name="ct_samples_at"),
            models.Index(fields=["process", "at_s"], name="ct_samples_process"),
        ]


class SharedCapture(models.Model):
    """A record that other failures of its group are stored as a difference to."""

    id = KeyField(primary_key=True, max_length=ID)
    fingerprint = models.CharField(max_length=ID, default="", blank=True)
    at_s = models.FloatField(default=0.0)
    failures = models.BigIntegerField(default=0)
    text = models.TextField(default="", blank=True)
    payload = models.BinaryField(null=True)

    objects = StoreManager()

    class Meta:
        db_table = PREFIX + "captures"
        verbose_name = "shared capture"
        verbose_name_plural = "shared captures"
        indexes = [
            models.Index(fields=["fingerprint", "at_s"], name="ct_captures_print"),
        ]


class Stats(models.Model):
    """A process's account of itself."""

    process = KeyField(primary_key=True, max_length=200)
    seq = models.BigIntegerField(default=0)
    at_s = models.FloatField(default=0.0)
    counters = models.TextField(default="", blank=True)
    overhead_s = models.FloatField(default=0.0)
    process_s = models.FloatField(default=0.0)

    objects = StoreManager()

    class Meta:
        db_table = PREFIX + "stats"
        verbose_name = "statistics"
        verbose_name_plural = "statistics"
        indexes = [
            models.Index(fields=["at_s"], name="ct_stats_at"),
        ]


class Total(models.Model):
    """The rollups of all processes, added up."""

    id = KeyField(primary_key=True, max_length=ID)
    kind = models.CharField(max_length=WORD, default="", blank=True)
    name = models.CharField(max_length=NAME, default="", blank=True)
    bucket_s = models.BigIntegerField(default=0)
    runs = models.BigIntegerField(default=0)
    failed = models.BigIntegerField(default=0)
    retried = models.BigIntegerField(default=0)
    duration_s = models.FloatField(default=0.0)
    duration_max_s = models.FloatField(default=0.0)
    durations = models.TextField(default="", blank=True)
    gated = models.BigIntegerField(default=0)
    kept_blocks = models.BigIntegerField(default=0)
    kept_bytes = models.BigIntegerField(default=0)
    rss_max_bytes = models.BigIntegerField(default=0)
    overhead_s = models.FloatField(default=0.0)
    concurrent = models.BooleanField(default=False)

    objects = StoreManager()

    class Meta:
        db_table = PREFIX + "totals"
        verbose_name = "total"
        verbose_name_plural = "totals"
        indexes = [
            models.Index(fields=["bucket_s", "id"], name="ct_totals_bucket"),
            models.Index(fields=["name", "bucket_s"], name="ct_totals_name"),
        ]

    def __str__(self) -> str:
        return str(self.name)


class HeapProfile(models.Model):
    """What a name has left alive in one process by call stack, the latest of an hour."""

    id = KeyField(primary_key=True, max_length=ID)
    process = models.CharField(max_length=ID, default="", blank=True)
    kind = models.CharField(max_length=WORD, default="", blank=True)
    name = models.CharField(max_length=NAME, default="", blank=True)
    release = models.CharField(max_length=NAME, default="", blank=True)
    at_s = models.FloatField(default=0.0)
    runs = models.BigIntegerField(default=0)
    bytes = models.BigIntegerField(default=0)
    payload = models.BinaryField(null=True)

    objects = StoreManager()

    class Meta:
        db_table = PREFIX + "heap_profiles"
        verbose_name = "heap profile"
        verbose_name_plural = "heap profiles"
        indexes = [
            models.Index(fields=["at_s"], name="ct_heap_profiles_at"),
            models.Index(fields=["name", "kind", "at_s", "id"], name="ct_heap_profiles_name"),
            models.Index(fields=["process"], name="ct_heap_profiles_process"),
        ]

    def __str__(self) -> str:
        return str(self.name)


class Window(models.Model):
    """Evidence about one name in one process."""

    id = KeyField(primary_key=True, max_length=ID)
    investigation = models.CharField(max_length=ID, default="", blank=True)
    process = models.CharField(max_length=ID, default="", blank=True)
    kind = models.CharField(max_length=WORD, default="", blank=True)
    name = models.CharField(max_length=NAME, default="", blank=True)
    stage = models.CharField(max_length=WORD, default="", blank=True)
    verdict = models.CharField(max_length=WORD, default="", blank=True)
    at_s = models.FloatField(default=0.0)
    payload = models.BinaryField(null=True)

    objects = StoreManager()

    class Meta:
        db_table = PREFIX + "windows"
        verbose_name = "window"
        verbose_name_plural = "windows"
        indexes = [
            models.Index(fields=["at_s", "id"], name="ct_windows_at"),
            models.Index(fields=["name", "kind", "at_s", "id"], name="ct_windows_name"),
        ]
