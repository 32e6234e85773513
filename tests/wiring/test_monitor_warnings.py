"""What the monitor's command points out at its start."""

from types import SimpleNamespace

import pytest

from flower_plugin.auth.login import Credentials
from flower_plugin.auth.roles import RoleMap
from flower_plugin.command import warnings


def said(*argv, roles=(), pairs=("ada:1",), **options):
    keeper = SimpleNamespace(roles=RoleMap.parse(roles), credentials=Credentials(pairs))
    defaults = {"xheaders": False, "trace_trusted_proxies": [], "unix_socket": "", "auth": ""}
    return "\n".join(warnings(SimpleNamespace(**{**defaults, **options}), argv, keeper))


@pytest.mark.parametrize(
    "option", ["--basic_auth", "--basic-auth", "--oauth2_secret", "--cookie-secret", "-broker_api"]
)
def test_a_secret_on_the_command_line_is_pointed_out_with_the_way_around(option):
    found = said("--port=0", f"{option}=ada:hunter2")
    name = option.strip("-").replace("-", "_")
    assert f"--{name} on the command line is visible to all users of this machine" in found
    assert f"FLOWER_{name.upper()} in the environment" in found
    assert "flowerconfig.py" in found
    assert "hunter2" not in found


def test_two_secrets_on_the_command_line_are_one_warning():
    found = said("--basic_auth=ada:1", "--cookie_secret=2")
    assert "--basic_auth and --cookie_secret on the command line" in found
    assert "\n" not in found


def test_xheaders_without_a_trusted_proxy_are_pointed_out():
    assert "--trace_trusted_proxies=127.0.0.1" in said(xheaders=True)
    assert said(xheaders=True, trace_trusted_proxies=["127.0.0.1"]) == ""
    assert said(xheaders=True, unix_socket="/run/monitor.sock") == ""


def test_a_role_for_a_name_that_nobody_has_is_pointed_out():
    """Somebody meant to be limited by a misspelt entry would get the role of ``*``."""
    assert "--trace_roles has 'adda', but no account has that name" in said(roles=["adda:look", "*:live"])
    assert said(roles=["ada:look", "*:live"]) == ""
    assert said(roles=["ada@example.org:look"], auth=".*@example.org") == ""


def test_a_start_without_anything_odd_says_nothing():
    assert said("--port=0", "--trace_roles=ada:live", roles=["ada:live"]) == ""
