"""Who may do what. Roles are steps of one stair: each may do what the ones below it may."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum

from msgspec import Struct

from celery_trace.settings import SettingError


class Role(IntEnum):
    """What somebody may do. A handler that declares no role is for nobody."""

    PUBLIC = 0  # the login page and the style sheets that it needs
    LOOK = 1  # see leaks, failures and figures, without any of the users' values
    LOCALS = 2  # see locals, arguments and requests; acknowledge and silence alerts, resolve leaks and groups
    RECREATED = 3  # open the recreated shell
    LIVE = 4  # open the live shell, retry a task, give commands to workers
    NOBODY = 99

    @property
    def word(self) -> str:
        """How ``--trace_roles`` spells it."""
        return self.name.lower()


#: What ``--trace_roles`` accepts.
ASSIGNABLE = (Role.LOOK, Role.LOCALS, Role.RECREATED, Role.LIVE)


class User(Struct, frozen=True):
    """Somebody who has logged in. ``how`` is ``session``, ``basic``, ``bearer`` or ``oauth``."""

    name: str
    role: Role
    how: str

    def __str__(self) -> str:
        return self.name

    def may(self, role: Role) -> bool:
        """Whether this user stands high enough."""
        return self.role >= role


class RoleMap:
    """
    User names to roles.

    Without any entry everybody who can log in may do everything, as in Flower itself.
    With entries, who is not named gets ``*``'s role, and ``look`` where there is no ``*``. The case of an address does
    not matter: OAuth providers hand it on in different ones, and who is limited must not get ``*``'s role by that.
    """

    def __init__(self, entries: Mapping[str, Role]) -> None:
        self._entries = dict(entries)
        self._others = self._entries.pop("*", Role.LOOK if entries else Role.LIVE)

    def unmatched(self, accounts: Iterable[str]) -> frozenset[str]:
        """The names among the entries that none of these accounts has."""
        return frozenset(self._entries) - frozenset(map(_as_key, accounts))

    @classmethod
    def parse(cls, entries: Iterable[str]) -> RoleMap:
        """
        Read ``user:role`` entries; a name from an OAuth provider may contain colons, so the role is after the last one.

        Raises:
            SettingError: An entry has no role, or one that does not exist, or a name has two.
        """
        roles: dict[str, Role] = {}
        words = {role.word: role for role in ASSIGNABLE}
        for entry in entries:
            name, colon, word = entry.strip().rpartition(":")
            name = _as_key(name.strip())
            if not colon or not name or word not in words:
                raise SettingError(
                    f"--trace_roles has the entry {entry!r}, but each must be user:role "
                    f"with one of the roles {', '.join(words)}; *:role names everybody else."
                )
            if name in roles:
                raise SettingError(
                    f"--trace_roles gives {name!r} two roles. Each name may stand there once; remove one."
                )
            roles[name] = words[word]
        return cls(roles)

    def role(self, name: str) -> Role:
        """The role of somebody who has proved to be ``name``."""
        return self._entries.get(_as_key(name), self._others)


def _as_key(name: str) -> str:
    return name.casefold() if "@" in name else name
