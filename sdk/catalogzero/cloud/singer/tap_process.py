"""A tap at work: its output in blocks of lines, its standard error in the log.

Owns the process: its environment, how long it may be silent, how it ends. Never reads a message.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from catalogzero.clock import Clock
from catalogzero.cloud.settings import TapSource
from catalogzero.config.key_files import refuse_writable
from catalogzero.config.logs import Logger, printable
from catalogzero.config.settings import MAX_SECRET_FILE_BYTES
from catalogzero.errors import ConfigError, FailedError, RunCancelledError

MAX_LINE_BYTES = 1 << 26
END_GRACE_S = 5.0
_LAUNCHER = Path(__file__).with_name("tap_launcher.py")
_READ_BYTES = 1 << 20
_LOOK_S = 0.25
_LOGGED_LINES, _LOGGED_CHARS, _ERROR_BYTES = 10_000, 1_000, 1 << 16
_LAST_LINES, _LAST_CHARS = 5, 150
"""The lines of standard error that a failure repeats."""
_ENVIRONMENT = (
    *("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TZ", "LANG", "LC_ALL", "LC_CTYPE"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)
"""What a tap gets of the environment: the rest may hold the handler's own secrets."""


@dataclass(frozen=True, slots=True)
class TapHost:
    """What a tap's run needs of the handler: its log and mask, time, and whether it is to stop."""

    log: Logger
    mask: Callable[[str], str]
    clock: Clock
    is_cancelled: Callable[[], bool]


def refuse_unusable(source: TapSource) -> None:
    """Refuse a tap whose files cannot be used.

    Raises:
        ConfigError: Its command or config file is not there, or may not be used.
    """
    command, config = source.command, source.config_file
    if not command.is_file() or not os.access(command, os.X_OK):
        raise ConfigError(f"command {command} is no file that this user may execute")
    if config is None:
        return
    refuse_writable(config)
    try:
        size = config.stat().st_size
        found = json.loads(config.read_text("utf-8")) if size <= MAX_SECRET_FILE_BYTES else None
    except OSError as error:
        raise ConfigError(f"config_file {config} cannot be read: {error.strerror}") from error
    except ValueError:
        found = None  # its text may be a secret: no word of what is wrong in it
    if not isinstance(found, dict):
        raise ConfigError(f"config_file {config} is no JSON object of at most 64 KiB")


class TapProcess:
    """A tap that runs; a context manager that ends it with all that it started.

    Args:
        name: The source's, for errors.
        source: What the config says of it.
        arguments: Beside `--config`.
        folder: Where it runs.
        host: Whose run it is.
    """

    def __init__(
        self, name: str, source: TapSource, arguments: Sequence[str], folder: Path, host: TapHost
    ) -> None:
        self._name, self._host, self._silence_s = name, host, source.answer_timeout_s
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        self._error_rest, self._logged = b"", 0
        config = source.config_file
        given = [] if config is None else ["--config", str(config.absolute())]
        command = [str(source.command), *given, *arguments]
        # Ended by its group; it has no terminal, so that Ctrl-C is the handler's to answer.
        self._child = subprocess.Popen(  # noqa: S603  # the client's own config names it
            [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={key: os.environ[key] for key in _ENVIRONMENT if key in os.environ},
            start_new_session=True,
        )
        self._pipes = [pipe for pipe in (self._child.stdout, self._child.stderr) if pipe]
        self._ready = selectors.DefaultSelector()
        for pipe in self._pipes:
            os.set_blocking(pipe.fileno(), False)
            self._ready.register(pipe, selectors.EVENT_READ)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End it: asked first, then killed, as is whatever it left behind."""
        for pipe in self._pipes:
            pipe.close()
        self._ready.close()
        with suppress(ProcessLookupError, PermissionError):  # macOS' word for a group of the dead
            if self._child.poll() is None:
                os.killpg(self._child.pid, signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    self._child.wait(END_GRACE_S)
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()

    def blocks(self) -> Iterator[bytes]:
        """Its output in blocks of whole lines, to its end.

        Raises:
            FailedError: It ended badly, was silent for too long, or wrote too long a line.
            RunCancelledError: The run is to stop.
        """
        rest: list[bytes] = []
        size = 0
        while data := self._read():
            end = data.rfind(b"\n") + 1
            if end:
                yield b"".join([*rest, data[:end]])
                rest, size = [], 0
            rest.append(data[end:])
            size += len(rest[-1])
            if size > MAX_LINE_BYTES:
                raise self.failure(
                    f"a line of its output is longer than {MAX_LINE_BYTES >> 20} MiB"
                )
        status = self._child.returncode
        if status:
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            raise self.failure(f"the tap {how}")
        if size:
            yield b"".join([*rest, b"\n"])

    def failure(self, why: str) -> FailedError:
        """The error of this tap, with what it said last."""
        self._take_errors(to_the_end=True)
        last = " | ".join(self._last)
        said = f"; it said last: {last}" if last else "; it said nothing on standard error"
        return FailedError(f"{self._name}: {self._host.mask(why)}{said}")

    def _read(self) -> bytes:
        """Its next output; nothing once it has ended."""
        clock, output = self._host.clock, self._pipes[0]
        heard_at = clock.monotonic()
        while True:
            if self._host.is_cancelled():
                raise RunCancelledError("the run was cancelled")
            has_ended = self._child.poll() is not None
            ready = {key.fileobj for key, _ in self._ready.select(0 if has_ended else _LOOK_S)}
            if ready - {output} and self._take_errors():
                heard_at = clock.monotonic()
            if output in ready:
                if data := os.read(output.fileno(), _READ_BYTES):
                    return data
                self._ready.unregister(output)
            elif has_ended:  # what it left behind may hold its pipes open
                self._take_errors(to_the_end=True)
                return b""
            if clock.monotonic() - heard_at > self._silence_s:
                raise self.failure(f"the tap said nothing for {self._silence_s:g} s: ended")

    def _take_errors(self, *, to_the_end: bool = False) -> bool:
        """Log the whole lines that its standard error has; whether there was anything.

        Args:
            to_the_end: All that it has now, also a line without an end.
        """
        errors, heard = self._pipes[1], False
        while True:
            try:
                found = os.read(errors.fileno(), _ERROR_BYTES)
            except BlockingIOError:
                break
            if not found:
                if errors in self._ready.get_map():
                    self._ready.unregister(errors)
                break
            heard = True
            *lines, rest = (self._error_rest + found).split(b"\n")
            # Of a line without end the beginning is enough: never a part of a secret by itself.
            self._error_rest = rest[:_ERROR_BYTES]
            for line in lines:
                self._log(line)
            if not to_the_end:
                break
        if to_the_end:
            self._log(self._error_rest)
            self._error_rest = b""
        return heard

    def _log(self, line: bytes) -> None:
        """Log one line of its standard error."""
        text = self._host.mask(line.decode("utf-8", "replace").strip())
        text = printable(text, one_line=True)
        if not text:
            return
        self._last.append(text[:_LAST_CHARS])
        self._logged += 1
        if self._logged <= _LOGGED_LINES:
            self._host.log.info("tap", source=self._name, text=text[:_LOGGED_CHARS])
        elif self._logged == _LOGGED_LINES + 1:
            self._host.log.warning("tap: no further line is logged", source=self._name)
