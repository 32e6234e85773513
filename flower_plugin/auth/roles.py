"""Roles of users. Each role includes the permissions of the lower ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum

from msgspec import Struct

from celery_trace.settings import SettingError


class UserRole(IntEnum):
    """A user's permissions. A handler without a declared role admits no user."""

    PUBLIC = 0  # the login page and its style sheets
    LOOK = 1  # see leaks, failures and figures, without values
    LOCALS = 2  # see local variables, arguments and requests; acknowledge and silence alerts, resolve leaks and groups
    RECREATED = 3  # open the recreated shell
    LIVE = 4  # open the live shell, retry a task, give commands to workers
    NOBODY = 99

    @property
    def word(self) -> str:
        """Its name in ``--trace_roles``."""
        return self.name.lower()


#: Valid roles of ``--trace_roles``.
ASSIGNABLE = (UserRole.LOOK, UserRole.LOCALS, UserRole.RECREATED, UserRole.LIVE)


class User(Struct, frozen=True):
    """An authenticated user. ``how`` is ``session``, ``basic``, ``bearer`` or ``oauth``."""

    name: str
    role: UserRole
    how: str

    def __str__(self) -> str:
        return self.name

    def may(self, role: UserRole) -> bool:
        """Whether the user's role includes this one."""
        return self.role >= role


class RoleMap:
    """
    User names to roles.

    Without entries all users have all permissions, as in Flower. With entries, other users get the role of ``*``, or
    ``look`` without a ``*``. The case of email addresses is ignored, as OAuth providers differ: a restricted user must
    not get the role of ``*`` that way.
    """

    def __init__(self, entries: Mapping[str, UserRole]) -> None:
        self._entries = dict(entries)
        self._others = self._entries.pop("*", UserRole.LOOK if entries else UserRole.LIVE)

    def unmatched(self, accounts: Iterable[str]) -> frozenset[str]:
        """Names of entries that are not among these accounts."""
        return frozenset(self._entries) - frozenset(map(_as_key, accounts))

    @classmethod
    def parse(cls, entries: Iterable[str]) -> RoleMap:
        """
        Read ``user:role`` entries. The role follows the last colon, as names of OAuth providers may contain colons.

        Raises:
            SettingError: An entry has no role or an unknown one, or a name has two.
        """
        roles: dict[str, UserRole] = {}
        words = {role.word: role for role in ASSIGNABLE}
        for entry in entries:
            name, colon, word = entry.strip().rpartition(":")
            name = _as_key(name.strip())
            if not colon or not name or word not in words:
                raise SettingError(
                    f"Invalid entry {entry!r} in --trace_roles: it must be user:role "
                    f"with one of the roles {', '.join(words)}; *:role is for all other users."
                )
            if name in roles:
                raise SettingError(f"--trace_roles has two roles for {name!r}. Remove one.")
            roles[name] = words[word]
        return cls(roles)

    def role(self, name: str) -> UserRole:
        """The role of the authenticated user ``name``."""
        return self._entries.get(_as_key(name), self._others)


def _as_key(name: str) -> str:
    return name.casefold() if "@" in name else name
