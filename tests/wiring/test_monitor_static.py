"""Our static files: scripts are modules, and addresses change when any file does."""

import re

import pytest

from flower_plugin.context import STATIC, static_version
from tests.support.monitor_app import Client, make_monitor, serving

SCRIPTS = sorted(str(path.relative_to(STATIC)) for path in STATIC.rglob("*.js"))
YEAR_S = 365 * 86_400


@pytest.fixture(scope="module", params=["", "pre/fix"])
def monitor(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("static")
    with serving(lambda: make_monitor(folder, url_prefix=request.param)) as (base, app):
        yield Client(base), app


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_served_as_one_and_browsers_may_keep_it(monitor, name):
    client, app = monitor
    answer = client.get(app.context.asset_url(name))
    assert answer.status == 200
    assert answer.headers["Content-Type"].partition(";")[0] in {"text/javascript", "application/javascript"}
    kept_s = int(re.search(r"max-age=(\d+)", answer.headers["Cache-Control"])[1])
    assert kept_s > YEAR_S


def test_a_file_of_another_version_is_not_there(monitor):
    client, app = monitor
    assert client.get(app.context.asset_url("trace.js").replace(static_version(), "0" * 12)).status != 200


def test_a_page_loads_all_scripts_of_ours_as_modules(monitor):
    client, app = monitor
    client.log_in(prefix=app.context.base_url)
    page = client.get(f"{app.context.base_url}/trace").text
    scripts = re.findall(r"<script([^>]*)src=\"([^\"]*/trace/static/[^\"]*)\"", page)
    assert [(kind.strip(), address) for kind, address in scripts] == [
        ('type="module"', app.context.asset_url("trace.js"))
    ]


@pytest.mark.parametrize("name", [name for name in SCRIPTS if not name.startswith("vendor/")])
def test_a_module_imports_only_what_is_there(name):
    text = (STATIC / name).read_text()
    imported = re.findall(r'^(?:import|export) .*?from "([^"]+)";', text, re.MULTILINE)
    assert len(imported) == len(re.findall(r"^import ", text, re.MULTILINE))
    for address in imported:
        assert address.startswith("."), "only a relative address keeps the prefix and the version"
        assert (STATIC / name).parent.joinpath(address).is_file(), address
