"""Names that were given once stay given: remembered over restarts, together with the users' aliases."""

import threading
from collections.abc import Iterable
from pathlib import Path

import msgspec

from osaurusd.errors import InvalidRequest, ModelNotFound, NameTaken
from osaurusd.models import names
from osaurusd.platform.state import StateFile

VERSION = 1


class _State(msgspec.Struct, kw_only=True):
    """The file's content: names by repo, and repos by alias."""

    version: int = VERSION
    names: dict[str, str] = {}
    aliases: dict[str, str] = {}


class Registry:
    """Names and aliases, kept in one file. Blocking, but small.

    Args:
        file: where they are kept; one that cannot be read is moved aside, and naming begins anew.
    """

    def __init__(self, file: Path) -> None:
        self._file = StateFile(file, _State())
        self._state = self._file.read()
        # Scans name models in threads of their own, while requests add aliases.
        self._lock = threading.Lock()

    @property
    def fault(self) -> str | None:
        """What was wrong with the file, if anything was."""
        return self._file.fault

    @property
    def aliases(self) -> dict[str, str]:
        """Repos by alias."""
        return dict(self._state.aliases)

    def name(self, repos: Iterable[str], *, keep_absent: bool) -> dict[str, str]:
        """A name for each repo, the one it has had before if it has.

        Args:
            repos: all that are here, in the order in which new ones may choose.
            keep_absent: whether repos that are not here keep their names, because they could not be looked for.
        """
        here = list(repos)
        with self._lock:
            return self._name(here, keep_absent=keep_absent)

    def _name(self, here: list[str], *, keep_absent: bool) -> dict[str, str]:
        absent = {repo: name for repo, name in self._state.names.items() if repo not in here} if keep_absent else {}
        assigned = names.assign(here, self._state.names, [*self._state.aliases, *absent.values()])
        if assigned | absent != self._state.names:
            self._state.names = assigned | absent
            self._save()
        return assigned

    def add_alias(self, alias: str, repo: str) -> None:
        """Let `alias` mean the model `repo` too; an alias that exists is pointed elsewhere.

        Raises:
            InvalidRequest: it cannot be a name.
            NameTaken: a model goes by it.
        """
        if not names.is_valid(alias):
            raise InvalidRequest(
                "`alias`: lower-case letters, digits, `.`, `_` and `-`, beginning with a letter or digit, "
                f"not {alias!r}",
                param="alias",
            )
        with self._lock:
            if alias in self._state.names.values() or alias in {name.lower() for name in self._state.names}:
                raise NameTaken(f"`{alias}` is the name of a model", param="alias")
            self._state.aliases[alias] = repo
            self._save()

    def remove_alias(self, alias: str) -> str:
        """Forget an alias; returns what it meant.

        Raises:
            ModelNotFound: there is no such alias.
        """
        with self._lock:
            if alias not in self._state.aliases:
                raise ModelNotFound(f"there is no alias `{alias}`", param="alias")
            repo = self._state.aliases.pop(alias)
            self._save()
            return repo

    def forget(self, repo: str) -> None:
        """The model was removed: its name and its aliases are free again."""
        with self._lock:
            self._state.names.pop(repo, None)
            self._state.aliases = {alias: target for alias, target in self._state.aliases.items() if target != repo}
            self._save()

    def _save(self) -> None:
        self._file.write(self._state)
