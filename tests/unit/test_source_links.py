"""Links to a line in an editor or on a forge, and which templates are allowed."""

import pytest

from celery_trace.settings import SettingError, load
from flower_plugin.auth.roles import User, UserRole
from flower_plugin.context import MonitorStatus
from flower_plugin.incoming.broker import BrokerState
from flower_plugin.pages.page import Visit
from flower_plugin.rendering.markup import Paths
from flower_plugin.rendering.source import source_link

FORGE = "https://forge.example/shop/blob/{release}/{path}#L{line}"


def visit(template):
    settings = load({"trace_source_url": template}, environment={})
    return Visit(
        arguments={}, now_s=0.0, user=User("ada", UserRole.LIVE, "session"), paths=Paths(["/srv/shop"]),
        settings=settings, monitor=MonitorStatus(settings=settings, broker=BrokerState(up=True, why="", since_s=0.0)),
    )  # fmt: skip


@pytest.mark.parametrize(
    "template",
    [
        "", FORGE, "vscode://file/{file}:{line}", "http://localhost:8080/{path}?line={line}",
        "idea://open?file={file}&line={line}", "https://forge.example/static",
    ],
)  # fmt: skip
def test_editors_and_forges_are_allowed(template):
    assert load({"trace_source_url": template}, environment={}).source_url == template


@pytest.mark.parametrize(
    "template",
    [
        "javascript:alert({line})", "JavaScript://x/{line}", "data:text/html,{path}", "vbscript:x",
        "file:///{path}", "{file}",
        "//evil.example/{path}", "https://x/{wrong}", "https://x/{", "https://x/{}", "https://x/ y", 'https://x/"onclick=x',
        "https://x/<script>", "https://x/{path}\n", "blob:https://x/{path}", " https://x/{path}", "https:{path}",
    ],
)  # fmt: skip
def test_every_other_template_is_refused_by_its_name(template):
    with pytest.raises(SettingError, match="trace_source_url"):
        load({"trace_source_url": template}, environment={})


def test_a_forge_gets_the_path_below_the_project_and_the_release():
    link = visit(FORGE).source_link("/srv/shop/shop/tasks.py", 42, release="1.8")
    assert link == "https://forge.example/shop/blob/1.8/shop/tasks.py#L42"


def test_a_file_of_another_host_is_found_by_its_module():
    seen = visit(FORGE)
    link = seen.source_link("/app/src/shop/tasks.py", 3, module="shop.tasks", release="1.8")
    assert link.endswith("/shop/tasks.py#L3")
    assert seen.source_link("/app/src/shop/__init__.py", 3, module="shop", release="1.8").endswith(
        "/shop/__init__.py#L3"
    )
    assert seen.source_link("/app/src/shop/tasks.py", 3, module="other", release="1.8") == ""


@pytest.mark.parametrize(
    ("file", "line", "release"),
    [
        ("/usr/lib/python3/dist-packages/celery/app/trace.py", 1, "1.8"), ("<string>", 1, "1.8"), ("", 1, "1.8"),
        ("/srv/shop/shop/tasks.py", 0, "1.8"), ("/srv/shop/shop/tasks.py", 1, ""),
    ],
)  # fmt: skip
def test_a_line_that_the_forge_does_not_have_has_no_link(file, line, release):
    assert visit(FORGE).source_link(file, line, release=release) == ""


def test_an_editor_opens_files_of_libraries_too():
    assert visit("vscode://file/{file}:{line}").source_link("/usr/lib/x/y.py", 7) == "vscode://file//usr/lib/x/y.py:7"
    assert visit("").source_link("/usr/lib/x/y.py", 7) == ""


def test_a_records_values_can_not_change_where_a_link_goes():
    link = source_link(FORGE, "/x", 'a b/../"><script>#{line}?@evil', 7, "javascript:x")
    assert link.startswith("https://forge.example/shop/blob/javascript%3Ax/a%20b/")
    assert link.endswith("%3F%40evil#L7")
    for sign in ' "<>{}':
        assert sign not in link
