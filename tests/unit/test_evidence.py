"""What the memory side writes holds no secret, and a dictionary's key can be told from the name of an attribute."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_trace.heap.evidence import key_step, without_keys, without_secrets
from celery_trace.model import Kind, Line, Run, Site, Stage, TypeCount, Verdict, Window
from celery_trace.redaction import Redactor

REDACTOR = Redactor(["tenant_code"])
TOKEN = "sk_live_51Habcdefgh12345678"
PASSWORD = "hunter2-and-more"


def window(**more):
    fields = {
        "id": "w", "investigation": "i", "process": "p", "kind": Kind.TASK, "name": "shop.pay", "stage": Stage.VERDICT,
        "verdict": Verdict.LEAKING, "at_s": 1.0, "runs": 8, "run_number": 80,
    }  # fmt: skip
    return Window(**{**fields, **more})


def test_no_text_of_a_window_or_a_run_holds_a_secret():
    line = Line("/srv/shop/tasks.py", 3, "pay", f'db_pass = "{PASSWORD}"')
    code = f'login("bob", "{PASSWORD}")'
    site = Site(file="/srv/tasks.py", line=4, function="pay", code=code, bytes=1, blocks=1, traceback=[line])
    told = window(
        name=f"import of redis://bob:{PASSWORD}@host",
        sites=[site],
        types=[TypeCount(f"shop.{TOKEN}", 1, 1)],
        retained_by=["shop (module)", f"{key_step(f'redis://bob:{PASSWORD}@host')}: list", f"{TOKEN}: dict"],
        bounded=f"{TOKEN} (1/2)",
        note=f"gave up on tenant_code={PASSWORD}",
    )
    run = Run(id="r", process="p", kind=Kind.BLOCK, name=f"a {TOKEN}", started_at_s=1.0, duration_s=1.0, top=[site])
    for record in (told, run):
        data = msgspec.json.encode(without_secrets(record, REDACTOR)).decode()
        assert PASSWORD not in data
        assert TOKEN not in data
    clean = without_secrets(told, REDACTOR)
    assert clean.retained_by == ["shop (module)", "['redis://bob:[redacted]@host']: list", "[redacted]: dict"]
    assert (clean.sites[0].bytes, clean.types[0].count, clean.kept_bytes_per_run) == (1, 1, 0.0)


def test_a_window_without_secrets_stays_as_it_is():
    line = Line("/a.py", 1, "f", "pay()")
    site = Site(file="/a.py", line=4, function="pay", code="_kept.append(1)", bytes=1, blocks=1, traceback=[line])
    path = ["shop.registry (module)", "_orders: dict", "['eu-west']: list[1234]", "Order × 1234"]
    told = window(sites=[site], types=[TypeCount("shop.Order", 2, 3)], retained_by=path, note="20 at once")
    assert without_secrets(told, REDACTOR) == told


@pytest.mark.parametrize("filling", ["x", "é", "'", '"', "]: "])
def test_a_key_is_searched_before_it_is_cut(filling):
    step = f"{key_step(filling * 40 + f' redis://bob:{PASSWORD * 5}@host ' + filling * 40)}: list"
    (clean,) = without_secrets(window(retained_by=[step]), REDACTOR).retained_by
    assert "hunter2" not in clean
    assert len(clean) < 90
    assert without_keys([clean]) == ["[str]: list"]


def test_who_may_not_see_values_sees_places_and_no_keys():
    path = [
        "shop.registry (module)", "_orders: dict", "['ada@example.org']: list[12]", "default argument: list",
        "left, right: tuple", "[3]: list", "Order × 12",
    ]  # fmt: skip
    assert without_keys(path) == [path[0], path[1], "[str]: list[12]", *path[3:]]


@pytest.mark.parametrize("old", ["redis://bob:x@host: list", "ada@example.org: dict", "two words: list", "7: dict"])
def test_a_key_in_a_record_of_an_older_release_is_hidden_where_it_is_no_name(old):
    assert without_keys([old]) == [f"[str]:{old.rpartition(':')[2]}"]


@settings(max_examples=100)
@given(st.text(max_size=200))
def test_no_key_is_seen_whatever_it_holds(key):
    assert without_keys([f"{key_step(key)}: list[3]"]) == ["[str]: list[3]"]
