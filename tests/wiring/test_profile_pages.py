"""Profiles in the monitor: the list, a page with its caged frame, and the button's order."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_trace.heap.flamegraph import Profile, Profiles
from tests.support.monitor_app import Client, make_monitor, serving


@pytest.fixture(scope="module")
def monitor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("profiles")
    with serving(lambda: make_monitor(folder, roles=("boss:live", "eye:look"), pairs=("boss:b", "eye:e"))) as found:
        yield (*found, folder)


@pytest.fixture
def profiles(monitor: Any) -> Iterator[Profiles]:
    found = Profiles(monitor[2])
    yield found
    for path in found.folder.glob("*"):
        path.unlink()


def ask(monitor: Any, path: str, *, user: str = "boss:b", method: str = "GET", body: Any = None) -> Any:
    import base64

    header = {"Authorization": "Basic " + base64.b64encode(user.encode()).decode()}
    return Client(monitor[0]).request(method, path, body, headers=header)


def a_profile(profiles: Profiles, id: str = "abc1", **values: Any) -> Profile:
    given = {"name": "shop.<b>tasks</b>.load", "at": time.time(), "state": "done", "host": "elsewhere", "pid": 7}
    profile = Profile(id=id, **{**given, **values})
    profiles.write(profile)
    return profile


def made(profiles: Profiles, profile: Profile, page: str) -> None:
    (profiles.folder / f"{profile.id}.peak.html").write_text(page)


def test_without_a_profile_the_page_says_how_to_get_one(monitor: Any) -> None:
    answer = ask(monitor, "/trace/profiles")
    assert answer.status == 200
    assert "No profiles" in answer.text


def test_profiles_are_listed_newest_first(monitor: Any, profiles: Profiles) -> None:
    a_profile(profiles, "old1", name="shop.older", at=time.time() - 60)
    a_profile(profiles, "new1", name="shop.newer", state="failed", why="memray could not begin: no space")
    text = ask(monitor, "/trace/profiles").text
    assert text.index("shop.newer") < text.index("shop.older")
    assert "no space" in text


def test_the_page_frames_the_flamegraph_in_a_sandbox_and_only_this_page_may_frame(
    monitor: Any, profiles: Profiles
) -> None:
    a_profile(profiles)
    answer = ask(monitor, "/trace/profiles/abc1")
    assert 'sandbox="allow-scripts"' in answer.text
    assert "frame-src 'self'" in answer.headers["Content-Security-Policy"]
    assert "<b>tasks" not in answer.text
    assert "frame-src" not in ask(monitor, "/trace/profiles").headers["Content-Security-Policy"]


def test_the_flamegraph_comes_without_an_origin_and_fetches_nothing(monitor: Any, profiles: Profiles) -> None:
    made(profiles, a_profile(profiles), "<html><head><script>1</script></head></html>")
    answer = ask(monitor, "/trace/profiles/abc1/flamegraph")
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("sandbox allow-scripts;")
    assert "default-src 'none'" in policy
    assert "allow-same-origin" not in policy
    assert "connect-src" not in policy
    assert answer.headers["X-Frame-Options"] == "SAMEORIGIN"
    assert answer.text.startswith("<html><head><script>(function")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/trace/profiles/none1", 404),
        ("/trace/profiles/none1/flamegraph", 404),
        ("/trace/profiles/..%2Fshell/flamegraph", 404),
        ("/trace/profiles/gone1/flamegraph", 409),
        ("/trace/profiles/gone1/flamegraph?view=other", 400),
    ],
)
def test_what_is_not_there_is_refused(monitor: Any, profiles: Profiles, path: str, status: int) -> None:
    a_profile(profiles, "gone1")
    assert ask(monitor, path).status == status


def test_a_profile_needs_the_role_that_sees_values(monitor: Any, profiles: Profiles) -> None:
    made(profiles, a_profile(profiles), "<html></html>")
    for path in ("/trace/profiles", "/trace/profiles/abc1", "/trace/profiles/abc1/flamegraph"):
        assert ask(monitor, path, user="eye:e").status == 403


def test_the_order_needs_the_role_live_and_a_name(monitor: Any) -> None:
    path = "/api/trace/tasks/profile"
    assert ask(monitor, path, user="eye:e", method="POST", body={"name": "shop.load"}).status == 403
    assert ask(monitor, path, method="POST", body={}).status == 400
    assert ask(monitor, path, method="POST", body={"name": "shop.load", "seconds": 1e9}).status == 400


def test_the_order_reaches_the_workers(monitor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def profile(_app: Any, _settings: Any, name: str, *, user: str, seconds: float) -> list[dict[str, Any]]:
        given.append((name, user, seconds))
        return [{"worker": "w1@here", "ok": len(given) == 1, "why": "" if len(given) == 1 else "memray is missing"}]

    monkeypatch.setattr("celery_trace.control.orders.profile", profile)
    answer = ask(monitor, "/api/trace/tasks/profile", method="POST", body={"name": "shop.load", "seconds": 30})
    assert answer.status == 200
    assert answer.json()["workers"][0]["ok"] is True
    assert given == [("shop.load", "boss", 30.0)]
    refused = ask(monitor, "/api/trace/tasks/profile", method="POST", body={"name": "shop.load"})
    assert refused.status == 409
    assert "memray is missing" in refused.json()["error"]["why"]


def test_the_newest_twenty_are_kept_with_all_their_files(tmp_path: Path) -> None:
    profiles = Profiles(tmp_path)
    for number in range(23):
        profile = a_profile(profiles, f"p{number}", at=float(number))
        profiles.recording(profile.id).write_bytes(b"x")
        made(profiles, profile, "x")
    a_profile(profiles, "last", at=99.0)
    assert [profile.id for profile in profiles.all()] == ["last", *(f"p{number}" for number in range(22, 3, -1))]
    assert not list(profiles.folder.glob("p0.*"))
