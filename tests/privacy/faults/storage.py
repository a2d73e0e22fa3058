"""Real stores in which a process can be killed before, in or after each operation, or lose the reply to it.

A fault is asked of a `Weather`; the operation is then done, half done, done twice or not done by the real backend.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from privimage.store.backends import Backend, LocalBackend

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

__all__ = ["FAULTS", "Below", "Fault", "FolderInWeather", "InWeather", "Killed", "Planted", "Weather", "kind_of"]

T = TypeVar("T")

Fault = Literal[
    "kill before", "kill within", "kill after", "interrupt", "refuse", "lose reply", "do twice", "ask", "stall"
]
FAULTS: tuple[Fault, ...] = (
    "kill before",
    "kill within",
    "kill after",
    "interrupt",
    "refuse",
    "lose reply",
    "do twice",
    "ask",
    "stall",
)


class Killed(BaseException):
    """What a killed process would not have lived to see; the store answers nothing to it any more."""


class Planted(Exception):
    """An error of the computation itself, such as torch's when memory runs out."""


class Weather(Protocol):
    """Decides the fate of each operation of the process that runs."""

    random: Random

    def fate(self, kind: str) -> Fault | None:
        """Called before each operation; raises Killed for a process that is dead."""
        ...

    def strike(self) -> Killed:
        """Kill the process that runs; the result is to be raised."""
        ...

    def done(self, kind: str, name: str) -> None:
        """Called after the effect of each operation that went well."""
        ...


def kind_of(operation: str, name: str) -> str:
    """An operation with the sort of object, such as 'create entry': what a fault can be aimed at."""
    if name.startswith("ledger/"):
        sort = "step" if "/steps/" in name else "entry" if "/entries/" in name else "binding"
    elif "checkpoints/" in name:
        sort = "checkpoint"
    elif name.endswith("/manifest.json"):
        sort = "manifest"
    elif "artifacts/" in name:
        sort = "payload"
    else:
        sort = "other"
    return f"{operation} {sort}"


class InWeather:
    """Every operation of a backend, with what may befall it."""

    def __init__(self, weather: Weather, inner: Backend) -> None:
        self.weather = weather
        self._inner = inner

    def read(self, name: str) -> bytes:
        return self._do("read", name, lambda: self._inner.read(name))

    def create(self, name: str, data: bytes) -> bool:
        return self._do("create", name, lambda: self._inner.create(name, data), lambda: self._torn(name, data))

    def put(self, local: Path, name: str) -> None:
        self._do("put", name, lambda: self._inner.put(local, name), lambda: self._torn(name, local.read_bytes()))

    def get(self, name: str, local: Path) -> str:
        return self._do("get", name, lambda: self._inner.get(name, local))

    def size(self, name: str) -> int:
        return self._do("size", name, lambda: self._inner.size(name))

    def names(self, prefix: str) -> list[str]:
        return self._do("list", f"{prefix}/", lambda: self._inner.names(prefix))

    def delete(self, name: str) -> None:
        self._do("delete", name, lambda: self._inner.delete(name))

    def delete_tree(self, prefix: str) -> None:
        def half() -> None:
            for name in self._inner.names(prefix)[::2]:
                self._inner.delete(name)

        self._do("delete", f"{prefix}/", lambda: self._inner.delete_tree(prefix), half)

    def arrow(self) -> tuple[FileSystem, str]:
        return self._inner.arrow()

    def _torn(self, name: str, data: bytes) -> None:
        """What a crash within a write leaves; nothing where a write is one request."""

    def _do(self, operation: str, name: str, effect: Callable[[], T], torn: Callable[[], None] = lambda: None) -> T:
        kind = kind_of(operation, name)
        match self.weather.fate(kind):
            case "kill before":
                raise self.weather.strike()
            case "kill within":
                torn()
                raise self.weather.strike()
            case "interrupt":
                raise KeyboardInterrupt
            case "refuse":
                raise OSError(errno.EIO, "planted: refused")
            case "kill after":
                effect()
                self.weather.done(kind, name)
                raise self.weather.strike()
            case "lose reply":
                effect()
                self.weather.done(kind, name)
                raise OSError(errno.EIO, "planted: the reply was lost")
            case "do twice":  # as a client does that waited in vain for the reply
                effect()
        result = effect()
        self.weather.done(kind, name)
        return result


class FolderInWeather(InWeather, LocalBackend):
    """A folder; a crash within a write leaves temporary files, empty, half-written or already linked."""

    def __init__(self, root: Path, weather: Weather) -> None:
        InWeather.__init__(self, weather, LocalBackend(root))
        self.root = root

    def _torn(self, name: str, data: bytes) -> None:
        target = self.path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        left = target.parent / f".{secrets.token_hex(8)}.tmp"
        written = self.weather.random.choice([0, len(data) // 2, len(data)])
        left.write_bytes(data[:written])
        if written == len(data) and self.weather.random.random() < 0.5 and not target.exists():
            os.link(left, target)
            self.weather.done(kind_of("create", name), name)


class Below:
    """A folder of a bucket. To save requests, `fixed` objects, and the ledger's once read, come from memory."""

    def __init__(self, inner: Backend, folder: str, fixed: Mapping[str, bytes]) -> None:
        self._inner = inner
        self._folder = folder
        self._fixed = fixed
        self._remembered: dict[str, bytes] = {}

    def read(self, name: str) -> bytes:
        if name in self._fixed:
            return self._fixed[name]
        if name in self._remembered:
            return self._remembered[name]
        data = self._inner.read(f"{self._folder}/{name}")
        if name.startswith("ledger/"):  # created once and never changed: the witness looks whether that holds
            self._remembered[name] = data
        return data

    def create(self, name: str, data: bytes) -> bool:
        return False if name in self._fixed else self._inner.create(f"{self._folder}/{name}", data)

    def put(self, local: Path, name: str) -> None:
        self._inner.put(local, f"{self._folder}/{name}")

    def get(self, name: str, local: Path) -> str:
        if name in self._fixed:
            local.write_bytes(self._fixed[name])
            return hashlib.sha256(self._fixed[name]).hexdigest()
        return self._inner.get(f"{self._folder}/{name}", local)

    def size(self, name: str) -> int:
        return len(self._fixed[name]) if name in self._fixed else self._inner.size(f"{self._folder}/{name}")

    def names(self, prefix: str) -> list[str]:
        fixed = {name for name in self._fixed if name.startswith(f"{prefix}/" if prefix else "")}
        below = f"{self._folder}/{prefix}".rstrip("/")
        return sorted(fixed | {name.removeprefix(f"{self._folder}/") for name in self._inner.names(below)})

    def delete(self, name: str) -> None:
        self._inner.delete(f"{self._folder}/{name}")

    def delete_tree(self, prefix: str) -> None:
        self._inner.delete_tree(f"{self._folder}/{prefix}")

    def arrow(self) -> tuple[FileSystem, str]:
        filesystem, root = self._inner.arrow()
        return filesystem, f"{root}/{self._folder}"
