"""Names, passwords and roles: who is let in as whom, and how often somebody may guess."""

from types import SimpleNamespace

import pytest

from celery_trace.clock import FakeClock
from celery_trace.settings import SettingError
from flower_plugin.auth.login import MOST_BY_ACCOUNT, MOST_BY_ADDRESS, WINDOW_S, Credentials, Guesses
from flower_plugin.auth.roles import Role, RoleMap
from flower_plugin.command import warnings


def test_roles_are_read_and_include_the_lower_ones():
    roles = RoleMap.parse(["ada:live", "a:b:look", "*:locals"])
    assert roles.role("ada") is Role.LIVE
    assert roles.role("a:b") is Role.LOOK
    assert roles.role("somebody") is Role.LOCALS
    assert RoleMap.parse(["ada:live"]).role("somebody") is Role.LOOK
    assert RoleMap.parse([]).role("somebody") is Role.LIVE


@pytest.mark.parametrize(
    "entry", ["ada", "ada:", ":live", " :live", "ada:root", "ada:LIVE", "ada:nobody", "ada:public"]
)
def test_a_wrong_role_is_refused_with_what_is_allowed(entry):
    with pytest.raises(SettingError, match="look, locals, recreated, live"):
        RoleMap.parse([entry])


def test_the_case_of_an_address_does_not_change_its_role():
    roles = RoleMap.parse(["Lou@Example.org:look", "Ada:locals", "*:live"])
    assert roles.role("lou@example.org") is roles.role("LOU@example.ORG") is Role.LOOK
    assert roles.role("Ada") is Role.LOCALS
    assert roles.role("ada") is Role.LIVE
    assert roles.unmatched(["lou@example.org"]) == {"Ada"}
    with pytest.raises(SettingError, match="two roles"):
        RoleMap.parse(["Lou@Example.org:look", "lou@example.org:live"])


def test_a_name_with_two_roles_is_refused():
    with pytest.raises(SettingError, match="gives 'ada' two roles"):
        RoleMap.parse(["ada:look", "bob:live", "ada:live"])


def test_credentials_let_in_who_fits_and_nobody_else():
    named = Credentials(["ada:secret:with:colons", "bob:other"])
    assert named.check("ada", "secret:with:colons") == "ada"
    assert named.check("bob", "other") == "bob"
    assert named.check("ada", "secret") is None
    assert named.check("ada", "other") is None
    assert named.check("bob", "secret:with:colons") is None
    assert named.check("", "") is None
    alone = Credentials(password="pw", token="tok")
    assert alone.check("whoever", "pw") == "admin"
    assert alone.check_token("tok") == "token"
    assert alone.check_token("") is None
    assert Credentials().check("", "") is None
    assert Credentials().check_token("") is None


@pytest.mark.parametrize("name", ["bob:live", "bob:live:secret", "", "bob "])
def test_a_colon_moves_nothing_from_the_password_into_the_name(name):
    named = Credentials(["bob:live:secret"])
    assert named.check("bob", "live:secret") == "bob"
    for password in ("secret", "live:secret", "", ":secret"):
        assert named.check(name, password) is None
    assert named.accounts == {"bob"}


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (["ada:1", "hunter2"], "Entry 2 of --basic_auth has no colon"),
        ([":hunter2"], "Entry 1 of --basic_auth has no name"),
        (["  :hunter2"], "Entry 1 of --basic_auth has no name"),
        (["ada:"], "gives 'ada' an empty password"),
        (["ada:hunter2", "bob:2", "ada:3"], "names 'ada' twice"),
        ([""], "Entry 1 of --basic_auth has no colon"),
    ],
)
def test_an_entry_that_opens_too_much_or_nothing_is_refused_without_its_password(pairs, said):
    with pytest.raises(SettingError) as refused:
        Credentials(pairs)
    assert said in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_passwords_are_not_kept():
    keeper = Credentials(["ada:hunter2"], "correct horse", "battery")
    assert not any(secret in repr(vars(keeper)) for secret in ("hunter2", "correct horse", "battery"))


# --- guessing ---------------------------------------------------------------------------------------


def test_guessing_is_limited_by_address_and_forgotten_in_time():
    clock = FakeClock()
    guesses = Guesses(clock)
    for _ in range(MOST_BY_ADDRESS):
        assert guesses.wait_s("192.0.2.1") == 0
        guesses.wrong("192.0.2.1")
    assert guesses.wait_s("192.0.2.1") == pytest.approx(WINDOW_S)
    assert guesses.wait_s("192.0.2.2") == 0
    clock.advance(WINDOW_S + 1)
    assert guesses.wait_s("192.0.2.1") == 0


def tries(guesses, account, number=100):
    """How many of that many guesses are taken, each from an address of its own."""
    taken = 0
    for index in range(number):
        address = f"10.0.{index // 250}.{index % 250}"
        if guesses.wait_s(address, [account]) == 0:
            guesses.wrong(address, [account])
            taken += 1
    return taken


@pytest.mark.parametrize("account", ["ada", "whom nobody knows"])
def test_changing_the_address_does_not_help_and_does_not_tell_which_names_exist(account):
    clock = FakeClock()
    guesses = Guesses(clock, {"ada", "bob"})
    assert tries(guesses, account) == MOST_BY_ACCOUNT
    assert guesses.wait_s("198.51.100.1", ["bob"]) == 0
    clock.advance(WINDOW_S + 1)
    assert tries(guesses, account) == MOST_BY_ACCOUNT


def test_who_has_logged_in_from_an_address_gets_in_again_while_strangers_guess():
    guesses = Guesses(FakeClock(), {"ada", "bob"})
    guesses.right("192.0.2.7", "ada")
    tries(guesses, "ada")
    assert guesses.wait_s("192.0.2.7", ["ada"]) == 0
    assert guesses.wait_s("192.0.2.8", ["ada"]) > 0
    # The address is known of ada alone, and is itself no place to guess from.
    tries(guesses, "bob")
    assert guesses.wait_s("192.0.2.7", ["bob"]) > 0
    for _ in range(MOST_BY_ADDRESS):
        guesses.wrong("192.0.2.7", ["ada"])
    assert guesses.wait_s("192.0.2.7", ["ada"]) > 0


def test_made_up_names_do_not_displace_the_count_of_an_account():
    guesses = Guesses(FakeClock(), {"ada"})
    tries(guesses, "ada")
    for number in range(10_000):
        guesses.wrong(f"2001:db8:{number:x}::1", [f"made up {number}"])
    assert guesses.wait_s("198.51.100.1", ["ada"]) > 0


def test_guesses_take_bounded_memory():
    guesses = Guesses(FakeClock(), {"ada"})
    for number in range(10_000):
        address = f"2001:db8:{number:x}::1"
        guesses.wrong(address, [f"{number}" + "x" * 10_000])
        guesses.right(address, "ada")
        guesses.right(address, "nobody")
    assert len(guesses) <= 4096 + 4096 + 1 + 64
    assert max(len(name) for name in guesses._accounts._others) == 200


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
    ],
)
def test_guesses_are_counted_for_all_that_one_visitor_has_at_hand(one, other, same):
    guesses = Guesses(FakeClock())
    for _ in range(MOST_BY_ADDRESS):
        guesses.wrong(one)
    assert guesses.wait_s(one) > 0
    assert (guesses.wait_s(other) > 0) is same


def test_a_guess_counts_for_every_account_that_it_could_open():
    assert Credentials(["ada:1"]).tried("ada") == ("ada",)
    assert Credentials(["ada:1"], "pw").tried("eve") == ("eve", "admin")
    assert Credentials(password="pw").tried("eve") == ("admin",)
    assert Credentials(["ada:1"], "pw", "tok").tried_by_token() == ("token", "admin")
    assert Credentials(["ada:1"]).tried_by_token() == ()


# --- what is said at the start ----------------------------------------------------------------------


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
    assert f"--{name} on the command line can be read by every user of this machine" in found
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
    assert "--trace_roles names 'adda', but nobody can log in" in said(roles=["adda:look", "*:live"])
    assert said(roles=["ada:look", "*:live"]) == ""
    assert said(roles=["ada@example.org:look"], auth=".*@example.org") == ""


def test_a_start_without_anything_odd_says_nothing():
    assert said("--port=0", "--trace_roles=ada:live", roles=["ada:live"]) == ""
