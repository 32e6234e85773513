"""What the demo prints for the person who watches."""

from types import SimpleNamespace

from tests.support.processes import REPOSITORY


def test_the_demo_says_that_it_measures_more_than_usual(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(REPOSITORY / "examples"))
    from demo.__main__ import look_around

    look_around(
        SimpleNamespace(
            login_link="", monitor_page="", password="", site_url="", admin_password="", broker_url="", folder="",
            programs=[SimpleNamespace(cwd="")],
        )
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "up to 20 % of each process's time" in printed
    assert "default is 1 %" in printed
