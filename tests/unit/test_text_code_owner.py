"""Whose code a file is: one answer for leaks, failures, pages and commands."""

from __future__ import annotations

import os
import re
import sysconfig
import textwrap

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import celery_trace
from celery_trace.text import code_owner
from celery_trace.text.code_owner import CodeOwner, is_our_own, project_roots

KOMBU = "/usr/lib/python3/dist-packages/kombu/connection.py"
OURSELVES = os.path.dirname(celery_trace.__file__)


@pytest.mark.parametrize(
    ("file", "module", "is_users"),
    [
        ("/srv/shop/orders.py", "", True),
        ("/srv/shop/orders.py", "orders", True),
        ("shop/orders.py", "shop.orders", True),
        # Installed packages, on this host and on others.
        ("/usr/lib/python3/dist-packages/celery/app/trace.py", "", False),
        (KOMBU, "kombu.connection", False),
        ("/srv/shop/.venv/lib/python3.11/site-packages/celery/app/trace.py", "celery.app.trace", False),
        ("/srv/shop/.venv/lib64/python3.13t/site-packages/_cffi.py", "", False),
        ("/home/app/.pex/installed_wheels/4f/kombu-5.5-py3-none-any.whl/kombu/mixins.py", "", False),
        ("/srv/eggs/kombu-5.5-py3.11.egg/kombu/mixins.py", "", False),
        (msgspec.__file__, "msgspec", False),
        # Names that only contain such a folder's name.
        ("/srv/site-packages-demo/shop/tasks.py", "", True),
        ("/srv/my-dist-packages/tasks.py", "", True),
        ("/srv/python3.11/tasks.py", "", True),
        ("/srv/app.zip/shop/tasks.py", "", True),
        # Docker's folder for a program lies below the prefix of Debian's Python.
        ("/usr/src/app/shop/tasks.py", "", True),
        ("/usr/local/src/shop/tasks.py", "", True),
        # Python's own.
        (textwrap.__file__, "textwrap", False),
        (sysconfig.get_path("stdlib") + "/json/decoder.py", "", False),
        ("/opt/elsewhere/lib/python3.13/json/decoder.py", "", False),
        ("/usr/lib/python311.zip/json/decoder.py", "", False),
        ("<frozen importlib._bootstrap>", "importlib._bootstrap", False),
        # Programs that start others' code.
        ("/opt/venv/bin/celery", "__main__", False),
        ("/srv/shop/bin/import_orders.py", "__main__", True),
        # What a person types is the user's; what a library makes with exec is not.
        ("<string>", "", False),
        ("<string>", "attr._make", False),
        ("<string>", "__main__", True),
        ("<stdin>", "__main__", True),
        ("<ipython-input-1-0f>", "", True),
        ("<doctest shop.orders[3]>", "", True),
        ("<attrs generated init shop.Order>", "shop", False),
        ("", "", False),
        # celery-trace itself.
        (code_owner.__file__, "celery_trace.text.code_owner", False),
        (os.path.join(os.path.dirname(OURSELVES), "django_bridge", "middleware.py"), "", False),
    ],
)
def test_whose_a_file_is(file: str, module: str, is_users: bool) -> None:
    assert CodeOwner()(file, module) is is_users


@pytest.mark.parametrize(
    ("file", "module", "is_users"),
    [
        ("/usr/lib/python3/dist-packages/acme/tool.py", "acme.tool", True),
        ("/usr/lib/python3/dist-packages/acme/tool.py", "", True),
        ("/usr/lib/python3/dist-packages/acme.py", "", True),
        ("/usr/lib/python3/dist-packages/acme/__init__.py", "", True),
        ("/usr/lib/python3/dist-packages/acmeother/tool.py", "", False),
        ("/opt/venv/lib/python3.11/site-packages/vendor/acme/tool.py", "", False),
        ("/opt/venv/lib/python3.11/site-packages/vendor/acme/tool.py", "vendor.acme.tool", False),
        ("/opt/venv/lib/python3.11/site-packages/shared/lib.py", "shared.lib", True),
        ("/opt/shared/lib.py", "shared.lib", True),
        ("/opt/shared/bin/run", "__main__", True),
        ("/opt/shared/.venv/lib/python3.11/site-packages/celery/app/trace.py", "celery.app.trace", False),
        ("<template>", "acme.pages", True),
    ],
)
def test_the_setting_names_what_else_is_the_users(file: str, module: str, is_users: bool) -> None:
    owner = CodeOwner(["acme", "/opt/shared", "/opt/venv/lib/python3.11/site-packages/shared/"])
    assert owner(file, module) is is_users


def test_a_project_that_is_installed_is_the_users_and_what_is_installed_below_it_is_not() -> None:
    root = "/opt/venv/lib/python3.11/site-packages/shop"
    owner = CodeOwner(roots=[root])
    assert owner(f"{root}/tasks.py")
    assert not owner("/opt/venv/lib/python3.11/site-packages/celery/app/trace.py")
    assert not owner(f"{root}/.venv/lib/python3.11/site-packages/celery/app/trace.py")


def test_a_leak_below_debians_kombu_is_at_the_users_line() -> None:
    frames = ((KOMBU, 921), ("/usr/lib/python3/dist-packages/celery/app/task.py", 3), ("/srv/shop/tasks.py", 5))
    assert CodeOwner().first(frames) == 2
    assert CodeOwner().first(frames[:2]) == 0


folder_names = st.from_regex(r"[a-z0-9_.-]{1,12}", fullmatch=True)
paths = st.lists(folder_names, min_size=1, max_size=6).map(lambda parts: "/" + "/".join(parts) + "/tasks.py")
library_folders = st.sampled_from(
    ["site-packages", "dist-packages", "x-1.0.egg", "lib/python3.12", "lib64/python3.14t"]
)


@given(paths)
def test_a_path_is_the_users_unless_a_whole_part_of_it_is_a_librarys(path: str) -> None:
    assume(not re.search(r"/(lib[^/]*/python3\.\d+t?|[^/]*\.(egg|whl)|python3\d+\.zip)/", path))
    assert CodeOwner()(path)
    assert CodeOwner()(path.replace("/tasks.py", "/my-site-packages/tasks.py"))


@given(paths, library_folders, paths)
def test_below_a_librarys_folder_nothing_is_the_users_unless_the_setting_says_so(
    before: str, library: str, below: str
) -> None:
    folder = f"{before.removesuffix('.py')}/{library}"
    assert not CodeOwner()(folder + below)
    assert CodeOwner([os.path.dirname(folder + below)])(folder + below)
    assert CodeOwner(roots=[os.path.dirname(folder + below)])(folder + below)


@given(paths, library_folders, paths)
def test_a_short_name_is_the_end_of_the_whole_one(before: str, library: str, below: str) -> None:
    file = f"{before.removesuffix('.py')}/{library}{below}"
    short = CodeOwner().short(file)
    assert file.endswith(short)
    assert short
    assert CodeOwner(roots=[os.path.dirname(file)]).short(file) == "tasks.py"


@pytest.mark.parametrize(
    ("file", "short"),
    [
        ("/srv/shop/tasks.py", "shop/tasks.py"),
        ("/srvother/shop.py", "/srvother/shop.py"),
        ("<string>", "<string>"),
        ("/opt/v/lib/python3.12/site-packages/celery/app/trace.py", "celery/app/trace.py"),
        ("/srv/.venv/lib/python3.12/site-packages/celery/app/trace.py", "celery/app/trace.py"),
        (KOMBU, "kombu/connection.py"),
        ("/opt/x/lib/python3.12/json/decoder.py", "python3.12/json/decoder.py"),
        ("/srv/site-packages-demo/tasks.py", "site-packages-demo/tasks.py"),
    ],
)
def test_files_are_shown_relative_to_the_project_or_to_where_they_are_installed(file: str, short: str) -> None:
    assert CodeOwner(roots=["/srv"]).short(file) == short


def test_the_projects_roots_are_here_and_hold_no_virtual_environment(tmp_path, monkeypatch) -> None:
    installed = tmp_path / ".venv" / "lib" / "python3.11" / "site-packages"
    installed.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "src"))
    monkeypatch.syspath_prepend(str(installed))
    assert project_roots() == (f"{tmp_path}/", f"{tmp_path}/src/")
    monkeypatch.chdir(installed)
    assert project_roots() == ()


def test_our_wrappers_around_the_users_code_exist() -> None:
    assert all(os.path.isfile(file) for file in code_owner.WRAPPERS)


def test_an_allocation_below_us_is_ours_unless_we_only_call_the_users_code() -> None:
    user = ("/srv/shop/tasks.py", 5)
    (wrapper, *_) = code_owner.WRAPPERS
    assert not is_our_own((user, (wrapper, 9)))
    assert is_our_own(((wrapper, 9), user))
    assert is_our_own((user, (code_owner.__file__, 1)))
