"""Names, passwords and roles: who is let in as whom, and how often somebody may guess."""

import pytest

from celery_trace.clock import FakeClock
from celery_trace.settings import SettingError
from flower_plugin.auth.login import MOST_BY_ACCOUNT, MOST_BY_ADDRESS, WINDOW_S, Credentials, LoginThrottle
from flower_plugin.auth.roles import RoleMap, UserRole


def test_roles_are_read_and_include_the_lower_ones():
    roles = RoleMap.parse(["ada:live", "a:b:look", "*:locals"])
    assert roles.role("ada") is UserRole.LIVE
    assert roles.role("a:b") is UserRole.LOOK
    assert roles.role("somebody") is UserRole.LOCALS
    assert RoleMap.parse(["ada:live"]).role("somebody") is UserRole.LOOK
    assert RoleMap.parse([]).role("somebody") is UserRole.LIVE


@pytest.mark.parametrize(
    "entry", ["ada", "ada:", ":live", " :live", "ada:root", "ada:LIVE", "ada:nobody", "ada:public"]
)
def test_a_wrong_role_is_refused_with_what_is_allowed(entry):
    with pytest.raises(SettingError, match="look, locals, recreated, live"):
        RoleMap.parse([entry])


def test_the_case_of_an_address_does_not_change_its_role():
    roles = RoleMap.parse(["Lou@Example.org:look", "Ada:locals", "*:live"])
    assert roles.role("lou@example.org") is roles.role("LOU@example.ORG") is UserRole.LOOK
    assert roles.role("Ada") is UserRole.LOCALS
    assert roles.role("ada") is UserRole.LIVE
    assert roles.unmatched(["lou@example.org"]) == {"Ada"}
    with pytest.raises(SettingError, match="two roles"):
        RoleMap.parse(["Lou@Example.org:look", "lou@example.org:live"])


def test_a_name_with_two_roles_is_refused():
    with pytest.raises(SettingError, match="two roles for 'ada'"):
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
        (["ada:"], "has an empty password for 'ada'"),
        (["ada:hunter2", "bob:2", "ada:3"], "has 'ada' twice"),
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
    throttle = LoginThrottle(clock)
    for _ in range(MOST_BY_ADDRESS):
        assert throttle.wait_s("192.0.2.1") == 0
        throttle.wrong("192.0.2.1")
    assert throttle.wait_s("192.0.2.1") == pytest.approx(WINDOW_S)
    assert throttle.wait_s("192.0.2.2") == 0
    clock.advance(WINDOW_S + 1)
    assert throttle.wait_s("192.0.2.1") == 0


def tries(throttle, account, number=100):
    """How many of that many throttle are taken, each from an address of its own."""
    taken = 0
    for index in range(number):
        address = f"10.0.{index // 250}.{index % 250}"
        if throttle.wait_s(address, [account]) == 0:
            throttle.wrong(address, [account])
            taken += 1
    return taken


@pytest.mark.parametrize("account", ["ada", "whom nobody knows"])
def test_changing_the_address_does_not_help_and_does_not_tell_which_names_exist(account):
    clock = FakeClock()
    throttle = LoginThrottle(clock, {"ada", "bob"})
    assert tries(throttle, account) == MOST_BY_ACCOUNT
    assert throttle.wait_s("198.51.100.1", ["bob"]) == 0
    clock.advance(WINDOW_S + 1)
    assert tries(throttle, account) == MOST_BY_ACCOUNT


def test_who_has_logged_in_from_an_address_gets_in_again_while_strangers_guess():
    throttle = LoginThrottle(FakeClock(), {"ada", "bob"})
    throttle.right("192.0.2.7", "ada")
    tries(throttle, "ada")
    assert throttle.wait_s("192.0.2.7", ["ada"]) == 0
    assert throttle.wait_s("192.0.2.8", ["ada"]) > 0
    # The address is known of ada alone, and is itself no place to guess from.
    tries(throttle, "bob")
    assert throttle.wait_s("192.0.2.7", ["bob"]) > 0
    for _ in range(MOST_BY_ADDRESS):
        throttle.wrong("192.0.2.7", ["ada"])
    assert throttle.wait_s("192.0.2.7", ["ada"]) > 0


def test_made_up_names_do_not_displace_the_count_of_an_account():
    throttle = LoginThrottle(FakeClock(), {"ada"})
    tries(throttle, "ada")
    for number in range(10_000):
        throttle.wrong(f"2001:db8:{number:x}::1", [f"made up {number}"])
    assert throttle.wait_s("198.51.100.1", ["ada"]) > 0


def test_guesses_take_bounded_memory():
    throttle = LoginThrottle(FakeClock(), {"ada"})
    for number in range(10_000):
        address = f"2001:db8:{number:x}::1"
        throttle.wrong(address, [f"{number}" + "x" * 10_000])
        throttle.right(address, "ada")
        throttle.right(address, "nobody")
    assert len(throttle) <= 4096 + 4096 + 1 + 64
    assert max(len(name) for name in throttle._accounts._others) == 200


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
    throttle = LoginThrottle(FakeClock())
    for _ in range(MOST_BY_ADDRESS):
        throttle.wrong(one)
    assert throttle.wait_s(one) > 0
    assert (throttle.wait_s(other) > 0) is same


def test_a_guess_counts_for_every_account_that_it_could_open():
    assert Credentials(["ada:1"]).tried("ada") == ("ada",)
    assert Credentials(["ada:1"], "pw").tried("eve") == ("eve", "admin")
    assert Credentials(password="pw").tried("eve") == ("admin",)
    assert Credentials(["ada:1"], "pw", "tok").tried_by_token() == ("token", "admin")
    assert Credentials(["ada:1"]).tried_by_token() == ()
