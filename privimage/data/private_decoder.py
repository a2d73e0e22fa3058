"""Sensitive images are decoded in a process of their own, whose standard error nobody but the data's owner reads.

Redirecting file descriptor 2 of this process instead would take away the output of all its threads: progress bars, and
other runs' messages, for as long as images are decoded. A process has a standard error of its own, and where a damaged
file ends it, that file is refused and the next one is decoded by a new one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import BoundedSemaphore
from types import TracebackType
from typing import BinaryIO, Self, cast

import numpy as np
from PIL import Image

from privimage.config.images import ImageConfig
from privimage.data.decode import Decoded, decode
from privimage.data.decoder import MOST_SAID, Form, receive, send
from privimage.data.problems import REPAIR, UnusableImage
from privimage.errors import PrivimageError

__all__ = ["PrivateDecoder"]


class PrivateDecoder:
    """Decodes like `decode`, in helper processes; may be called by several threads, of which each waits for a process of
    its own. There are as many as processors.

    A context manager: at its end all processes end. They start when they are first needed.
    """

    def __init__(self, form: ImageConfig, folder: Path) -> None:
        """`folder` is a private one: files without a name lie there, that hold what C libraries say."""
        self._form = form
        self._folder = folder
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        self._slots = BoundedSemaphore(os.cpu_count() or 1)

    def __call__(self, found: bytes | Image.Image, bits: int | None = None) -> Decoded:
        """The decoded image; what is no file was made by this process, and is not decoded again.

        Raises:
            UnusableImage: as `decode` does, what the C libraries said included; or the process ended over this image.
            PrivimageError: no such process can be started.
        """
        if not isinstance(found, bytes):
            return decode(found, self._form, bits)
        with self._slots:
            try:
                process = self._idle.get_nowait()
            except Empty:
                process = _Process(self._form, self._folder)
            try:
                decoded = process.decode(found, bits)
            except UnusableImage:
                if process.is_alive:
                    self._idle.put(process)
                raise
            except BaseException:
                process.end()
                raise
            self._idle.put(process)
            return decoded

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while True:
            try:
                self._idle.get_nowait().end()
            except Empty:
                return


class _Process:
    """One `python -m privimage.data.decoder`."""

    def __init__(self, form: ImageConfig, folder: Path) -> None:
        self._shape = (form.channels, form.resolution, form.resolution)
        self._said = cast(BinaryIO, tempfile.TemporaryFile(dir=folder))  # noqa: SIM115, closed by end()
        self._process = subprocess.Popen(
            # -P: what lies in the current folder must not take the place of a library.
            [sys.executable, "-P", "-m", "privimage.data.decoder"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={**os.environ, "PYTHONPATH": _search_path(), "PYTHONWARNINGS": ""},
            start_new_session=True,  # so that a terminal's Ctrl-C does not reach it
        )
        self.is_alive = True
        fields = asdict(Form(resolution=form.resolution, channels=form.channels, resize=form.resize))
        try:
            send(self._incoming, json.dumps(fields).encode())
            receive(self._outgoing)
        except (OSError, EOFError):
            self._said.seek(0)
            said = self._said.read().decode(errors="replace").strip().rpartition("\n")[2]
            self.end()
            # It had no image yet, so what it says may be told.
            raise PrivimageError(
                f"The process that decodes sensitive images does not start: {said or 'no reason'}."
            ) from None

    @property
    def _incoming(self) -> BinaryIO:
        return cast(BinaryIO, self._process.stdin)

    @property
    def _outgoing(self) -> BinaryIO:
        return cast(BinaryIO, self._process.stdout)

    def decode(self, data: bytes, bits: int | None) -> Decoded:
        try:
            send(self._incoming, json.dumps(bits).encode())
            send(self._incoming, data)
            answer = json.loads(receive(self._outgoing))
            pixels = receive(self._outgoing)
        except (OSError, EOFError, ValueError):
            raise self._ended() from None
        if "reason" in answer:
            raise UnusableImage(_with(str(answer["reason"]), str(answer["said"])), str(answer["cure"]))
        return Decoded(
            pixels=np.frombuffer(pixels, dtype=np.uint8).reshape(self._shape),
            digest=bytes.fromhex(answer["digest"]),
            used_bits=answer["used_bits"],
        )

    def end(self) -> int:
        """Let the process end, and return its exit code."""
        self.is_alive = False
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                # What is left to be written has no reader any more.
                with suppress(OSError):
                    stream.close()
        self._said.close()
        return self._process.wait()

    def _ended(self) -> UnusableImage:
        code = self._process.wait()
        self._said.seek(0)
        said = self._said.read(MOST_SAID).decode(errors="replace").strip()
        self.end()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return UnusableImage(_with(f"the decoder ended over this file ({how})", said), REPAIR)


def _search_path() -> str:
    """Where this process looks for packages, that of this very one included."""
    return os.pathsep.join([path for path in sys.path if path] + [str(Path(__file__).parents[2])])


def _with(reason: str, said: str) -> str:
    return f"{reason} [{said}]" if said else reason
