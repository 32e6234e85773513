"""Each field of a record finds its way into a row and back."""

from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from msgspec import Struct, inspect

from celery_trace.model import Failure, Kept, ProcessRecord, Role, Rollup, ShellLine
from celery_trace.stores import rows, schema, tables
from celery_trace.stores.mapping import TableOf
from celery_trace.stores.statements import insert_new
from tests.support.store_records import process, run

#: Fields that a table leaves to others: a session's lines have a table of their own, totals belong to no process.
ELSEWHERE = {"SHELLS": {"lines": []}, "TOTALS": {"process": "", "seq": 0}}
#: What their columns need beside the record.
BESIDE = {"SHELL_LINES": {"id": "s1:1", "shell": "s1"}, "TOTALS": {"id": "t1"}}
WRITTEN = {
    name: table
    for name, table in vars(rows).items()
    if isinstance(table, TableOf) and name not in ("PROCESS_VIEWS", "SUMMARIES", "GROUPS")
}


def example(kind: inspect.Type) -> Any:
    """A value of a type that is none of its defaults."""
    match kind:
        case inspect.StrType():
            return "schließt ☃"
        case inspect.IntType():
            return 7
        case inspect.FloatType():
            return 1.5
        case inspect.BoolType():
            return True
        case inspect.EnumType():
            return list(kind.cls)[-2]
        case inspect.UnionType():
            return example(kind.types[0])
        case inspect.ListType():
            return [example(kind.item_type)]
        case inspect.DictType():
            return {example(kind.key_type): example(kind.value_type)}
        case inspect.TupleType():
            return tuple(map(example, kind.item_types))
        case inspect.StructType():
            return kind.cls(**{field.name: example(field.type) for field in kind.fields})
    return "anything"


def examples(kind: type[Struct]) -> Any:
    return example(inspect.type_info(kind))


def stored(table: schema.Table, row: dict[str, Any]) -> Any:
    """The row as a database gives it back."""
    made = tables.metadata.tables[table.name]
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        made.create(connection)
        insert_new(connection, made, [row])
        found = connection.execute(sa.select(made)).one()
    engine.dispose()
    return found


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_a_record_with_all_its_fields_comes_back_from_its_row(name):
    table = WRITTEN[name]
    given = examples(table.kind)
    row = table.row(given, **BESIDE.get(name, {}))
    wanted = msgspec.structs.replace(given, **ELSEWHERE.get(name, {}))
    assert table.record(stored(table.table, row), **ELSEWHERE.get(name, {})) == wanted


def test_what_is_missing_in_a_record_is_empty_in_its_row_and_comes_back_missing():
    bare = run("r1")
    row = rows.RUNS.row(bare)
    assert row["payload"] is None
    assert rows.RUNS.record(stored(schema.runs, row)) == bare
    failed = rows.FAILURES.row(examples(Failure), shared="c1")
    assert failed["shared"] == "c1"
    nothing_raised = dict.fromkeys(("exception_type", "exception_module", "exception_message"), "")
    summary = rows.SUMMARIES.record(stored(schema.failures, failed | nothing_raised), count=2, live=False)
    assert summary.exception is None


def test_a_column_that_holds_no_field_of_its_record_is_a_mistake_that_is_told_at_once():
    with pytest.raises(TypeError, match=r"celery_trace_kept.until_s is not a field of ShellLine"):
        TableOf(msgspec.structs.replace(schema.kept, columns=schema.kept.columns[4:5]), ShellLine)
    TableOf(schema.kept, Kept)


def test_the_role_of_a_newer_version_is_a_scripts():
    row = stored(schema.processes, rows.process_row(process()) | {"role": "of tomorrow"})
    assert rows.PROCESSES.record(row).role is Role.SCRIPT
    sent = msgspec.json.encode(process()).replace(b'"child"', b'"of tomorrow"')
    assert msgspec.json.decode(sent, type=ProcessRecord).role is Role.SCRIPT


def test_a_field_that_a_record_no_longer_has_is_read_over():
    sent = msgspec.json.encode({"record": "rollup", "process": "p", "kind": "task", "name": "n", "bucket_s": 300,
                                "seq": 1, "runs": 2, "overhead_s": 0.5})  # fmt: skip
    assert msgspec.json.decode(sent, type=Rollup).runs == 2
