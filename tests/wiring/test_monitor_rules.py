"""Alert rules set in the monitor: checked as those of the configuration, kept in the store, and taken back."""

from base64 import b64encode

import pytest

from tests.support.monitor_app import Client, make_monitor, serving

ADDRESS = "/api/trace/alerts/rules"


@pytest.fixture(scope="module")
def monitor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rules")
    make = lambda: make_monitor(folder, pairs=("val:2", "liv:3"), roles=("val:locals", "liv:live"))  # noqa: E731
    with serving(make) as found:
        yield found


def ask(monitor, body=None, user="liv:3"):
    header = {"Authorization": "Basic " + b64encode(user.encode()).decode(), "Content-Type": "application/json"}
    client = Client(monitor[0])
    return client.get(ADDRESS, headers=header) if body is None else client.post(ADDRESS, body, headers=header)


def test_rules_are_set_hold_for_the_engine_and_are_taken_back(monitor):
    shipped = ask(monitor).json()
    assert shipped["set_by"] is None
    set_here = [{"rule": "leak", "name": "big", "above": "100 KiB", "names": ""}]
    answer = ask(monitor, {"rules": set_here})
    assert (answer.status, answer.json()["set_by"]) == (200, "liv")
    found = ask(monitor).json()
    assert [(rule["name"], rule["above"], rule["names"]) for rule in found["rules"]] == [("big", 102_400, [])]
    engine = monitor[1].context.engine
    engine.evaluate()
    assert [rule.name for rule in engine.rules] == ["big"]
    assert ask(monitor, {"rules": None}).json() == {"rules": None, "set_by": None}
    assert ask(monitor).json() == shipped


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "rules is missing"),
        ({"rules": "leak"}, "rules is missing"),
        ({"rules": ["leak"]}, "no list of rules"),
        ({"rules": [{"rule": "leek"}]}, "Did you mean 'leak'"),
        ({"rules": [{"rule": "leak", "above": "much"}]}, "'above' of the rule leak is 'much'"),
        ({"rules": [{"rule": "leak"}, {"rule": "leak"}]}, "give each its own 'name'"),
        ({"rules": [{"rule": "leak"}] * 201}, "at most 200"),
    ],
)
def test_what_is_no_rule_is_refused_with_what_is_allowed_and_nothing_changes(monitor, body, says):
    before = ask(monitor).json()
    answer = ask(monitor, body)
    assert answer.status == 400
    assert says in answer.text.replace("\\'", "'")
    assert ask(monitor).json() == before


def test_who_may_only_see_values_reads_the_rules_and_sets_none(monitor):
    assert ask(monitor, user="val:2").status == 200
    assert ask(monitor, {"rules": None}, user="val:2").status == 403


def test_who_may_not_change_rules_reads_them_on_the_page_without_a_form(monitor):
    pages = {}
    for user in ("val:2", "liv:3"):
        header = {"Authorization": "Basic " + b64encode(user.encode()).decode()}
        pages[user] = Client(monitor[0]).get("/trace/alerts", headers=header).text
    for text in pages.values():
        assert "keeps more than 512 B a run" in text
    assert "rules-save" in pages["liv:3"]
    assert "rules-save" not in pages["val:2"]
    assert 'data-key="above"' not in pages["val:2"]
    assert "<dt>Kept per run, more than</dt>" in pages["val:2"]
