"""Output is for people: a run whose reader is gone goes on, whatever it is that prints."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import pytest

from privimage.machine.progress import Terminal
from privimage.machine.readers import go_on_without_readers
from tests.pipeline_fixtures import Place

ROOT = Path(__file__).parents[1]

# Each of these took the stream before anybody knew that its reader would go.
PRINTS_IN_MANY_WAYS = """
import logging, os, sys
import flows
from prefect.logging import get_logger
from tqdm import tqdm

logger = get_logger("flow_runs")
logger.error("read")
sys.stdin.readline()  # the reader is gone now
for stream in (sys.stdout, sys.stderr):
    print("print", file=stream, flush=True)
    tqdm(total=3, file=stream).update(1)
    os.write(stream.fileno(), b"past Python")
logger.error("unread")
logging.getLogger("privimage").warning("unread")
os.write(int(sys.argv[1]), b"went on")
"""


def run_without_reader(*command: str, until: bytes) -> tuple[int, bytes]:
    """Exit code of a process of which nobody reads stdout and stderr once `until` was read; what it wrote elsewhere."""
    elsewhere, theirs = os.pipe()
    with subprocess.Popen(
        [sys.executable, *command, str(theirs)] if command[0] == "-c" else [sys.executable, *command],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[theirs],
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        os.close(theirs)
        read = b""
        while until not in read:
            line = process.stdout.readline()
            assert line, read
            read += line
        process.stdout.close()
        process.stdin.write(b"\n")
        process.stdin.close()
        code = process.wait(120)
    with os.fdopen(elsewhere, "rb") as rest:
        return code, rest.read()


def test_whatever_prints_in_a_flow_run_outlives_the_worker_that_reads_it() -> None:
    code, said = run_without_reader("-c", PRINTS_IN_MANY_WAYS, until=b"read")
    assert (code, said) == (0, b"went on")


def test_a_run_goes_on_to_its_end_where_nobody_reads_its_progress_any_more(granted: Place) -> None:
    code, _ = run_without_reader("-m", "privimage.cli", "run", *granted.options(), "--until", "index", until=b"public")
    assert code == 0


def broken_pipe() -> TextIO:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def test_progress_into_a_dead_pipe_is_no_error() -> None:
    with broken_pipe() as stream:
        progress = Terminal(stream, seconds_between_lines=0)
        progress.note("unread")
        with progress.ticker("unread", 2) as tick:
            tick(1)
            tick(2)


def test_another_error_of_the_stream_stays_one() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    stream = Full()
    go_on_without_readers(stream)
    with pytest.raises(OSError, match="No space"):
        stream.write("lost")


def test_it_may_be_asked_for_again_and_of_what_is_no_stream() -> None:
    with broken_pipe() as stream:
        go_on_without_readers(stream, None)
        method = stream.write
        go_on_without_readers(stream)
        assert stream.write is method
        print("unread", file=stream, flush=True)
