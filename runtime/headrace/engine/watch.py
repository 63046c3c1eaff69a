"""Follows a repository: what changes on disk is loaded, what goes is unloaded."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from headrace.engine.catalog import Catalog, ModelSource
from headrace.errors import HeadraceError

log = logging.getLogger(__name__)

_LOOK_AGAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Changing:
    """A fingerprint that was seen once."""

    to: object


class Watcher:
    """Looks at a repository again and again.

    A change is acted on when two looks in a row find it the same: nobody is copying then.

    Args:
        repository: what to look at.
        catalog: what is told to load and forget.
        seconds: how long between two looks.
    """

    def __init__(self, repository: ModelSource, catalog: Catalog, seconds: float) -> None:
        self._repository, self._catalog, self._seconds = repository, catalog, seconds
        self._seen: dict[str, object] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="headrace-poll", daemon=True)

    def remember(self, name: str) -> None:
        """Take what is on disk now for what is about to be loaded."""
        self._seen[name] = self._repository.fingerprint(name)

    def start(self) -> None:
        """Look from time to time, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, if there is one."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> bool:
        """Look once. Returns whether there is a change to look at again."""
        try:
            names = set(self._repository.names())
        except HeadraceError as error:
            log.warning("%s", error)
            return False
        changing = [self._look_at(name, name in names) for name in sorted(names | self._catalog.names())]
        return any(changing)

    def _look_at(self, name: str, is_there: bool) -> bool:
        now, before = self._repository.fingerprint(name), self._seen.get(name)
        if isinstance(before, _Changing):
            if now != before.to:
                self._seen[name] = _Changing(now)
                return True
            self._seen[name] = now
            if now is None and not is_there:
                del self._seen[name]
                self._catalog.forget(name)
            else:
                self._catalog.try_load(name)
        elif now != before:
            self._seen[name] = _Changing(now)
            return True
        return False

    def _follow(self) -> None:
        seconds = self._seconds
        while not self._stop.wait(seconds):
            # A change is looked at again soon.
            try:
                is_unsettled = self.look()
            except Exception:
                log.exception("a look at the repository failed; this is a bug in Headrace")
                is_unsettled = False
            seconds = min(_LOOK_AGAIN_SECONDS, self._seconds) if is_unsettled else self._seconds
