"""The process that decodes sensitive images: `python -m privimage.data.decoder`, started by `private_decoder`.

C libraries write what they find in a file to file descriptor 2, past everything Python could intercept. Here that is a
file of the starting process's choice, and what came into it while an image was decoded goes back with the image.

Reads from standard input, and writes to standard output, until the input ends: messages as a length of 8 bytes, big
endian, and so many bytes. First comes the canonical form as JSON, which is answered by `ready`; then for each image its
bits as JSON and its bytes. The answer is JSON and the canonical pixels. No message is code: a file that takes over the
decoder gets no further.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from privimage.data.decode import decode
from privimage.data.problems import UnusableImage

__all__ = ["MOST_SAID", "Form", "main", "receive", "send"]

MOST_SAID = 2000
"""So many characters of what C libraries said of one image are kept."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """The canonical form, as `ImageConfig` states it."""

    resolution: int
    channels: Literal[1, 3]
    resize: Literal["crop", "pad", "stretch"]


def send(stream: BinaryIO, message: bytes) -> None:
    """Write one message."""
    stream.write(len(message).to_bytes(8, "big") + message)
    stream.flush()


def receive(stream: BinaryIO) -> bytes:
    """Read one message; EOFError where the other side is gone."""
    length = int.from_bytes(_exactly(stream, 8), "big")
    return _exactly(stream, length)


def main() -> None:
    """Decode until the input ends."""
    # Who interrupts the run means the process that this one works for, which ends this one by closing its input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("always")
    incoming, outgoing = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not write into the answers
    form = Form(**json.loads(receive(incoming)))
    send(outgoing, b"ready")
    while True:
        try:
            bits = json.loads(receive(incoming))
            data = receive(incoming)
        except EOFError:
            return
        answer, pixels = _answer(data, form, bits)
        answer["said"] = _said()
        send(outgoing, json.dumps(answer).encode())
        send(outgoing, pixels)


def _answer(data: bytes, form: Form, bits: int | None) -> tuple[dict[str, Any], bytes]:
    try:
        found = decode(data, form, bits)
    except UnusableImage as problem:
        return {"reason": str(problem), "cure": problem.cure}, b""
    return {"digest": found.digest.hex(), "used_bits": found.used_bits}, found.pixels.tobytes()


def _said() -> str:
    """What was written to standard error since it was last asked for."""
    sys.stderr.flush()
    said = os.pread(2, MOST_SAID, 0)
    if said:
        os.lseek(2, 0, os.SEEK_SET)
        os.ftruncate(2, 0)
    return said.decode(errors="replace").strip()


def _exactly(stream: BinaryIO, length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data


if __name__ == "__main__":
    main()
