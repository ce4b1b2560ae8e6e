"""Run an OpenGL game in lockstep: each buffer swap is one frame, and the game's clock advances by exactly one frame.

`virtual_display` starts an X server without a screen. `Game` starts the game in it with `glgrab.c` preloaded, hands over its
pictures and log lines, and lets it continue. `XInput` presses keys and moves the mouse. Input that is set after frame i acts in
frame i + 1.
"""

import contextlib
import ctypes
import hashlib
import os
import select
import shutil
import socket
import struct
import subprocess  # the game and its display
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.errors import AttemptFailed, Unavailable

_SOURCE = Path(__file__).with_name("glgrab.c")
_GAMES = "/usr/games"
_HEAD = struct.Struct("<3I")  # frame number, width, height
_START_TIMEOUT_S = 90.0


def find_program(program: str) -> str | None:
    """Return the path of a program: in PATH, or where Debian puts games, which root's PATH leaves out."""
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", ""), _GAMES]))


def require(program: str, packages: str) -> str:
    """Return the path of a program. Raises Unavailable, which names the apt packages, where it is absent."""
    path = find_program(program)
    if path is None:
        raise Unavailable(f"{program} is not installed: apt-get install {packages}")
    return path


def cache_folder() -> Path:
    """Return the folder in which compiled code and prepared worlds are kept: the user's cache, or a temporary one."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gamecraft"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="gamecraft-"))
    return folder


def build_grabber() -> Path:
    """Return the compiled `glgrab.c`. It is compiled at first use and cached."""
    return build_library(_SOURCE)


def build_library(source: Path) -> Path:
    """Return the shared library that is compiled from a C file. It is compiled at first use and cached."""
    library = cache_folder() / f"{source.stem}-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}.so"
    if library.exists():
        return library
    compiler = require("cc", "gcc libc6-dev")
    part = library.with_name(f".part-{os.getpid()}-{library.name}")
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(part), str(source), "-ldl", "-lpthread"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise Unavailable(f"cannot compile {source.name} (apt-get install gcc libc6-dev): {result.stderr.strip()[-500:]}")
    part.replace(library)
    return library


@contextlib.contextmanager
def virtual_display(width: int, height: int) -> Iterator[str]:
    """Run an X server without a screen. Yield its name, a free one such as ":3"."""
    server = require("Xvfb", "xvfb")
    reading, writing = os.pipe()
    options = ["-displayfd", str(writing), "-screen", "0", f"{width}x{height}x24", "-nolisten", "tcp"]
    process = subprocess.Popen(
        [server, *options], pass_fds=[writing], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    os.close(writing)
    try:
        number = b""
        while not number.endswith(b"\n"):
            ready, _, _ = select.select([reading], [], [], _START_TIMEOUT_S)
            data = os.read(reading, 16) if ready else b""
            if not data:
                raise Unavailable("Xvfb did not start: a display could not be opened")
            number += data
        yield f":{int(number)}"
    finally:
        os.close(reading)
        _stop(process)


class XInput:
    """Press keys and move the mouse on an X display, by the XTEST extension."""

    def __init__(self, display: str) -> None:
        try:
            self._x, self._test = ctypes.CDLL("libX11.so.6"), ctypes.CDLL("libXtst.so.6")
        except OSError as error:
            raise Unavailable(f"{error}: apt-get install libx11-6 libxtst6") from error
        pointer, number = ctypes.c_void_p, ctypes.c_ulong
        self._x.XOpenDisplay.restype = pointer
        self._x.XDefaultRootWindow.restype = self._x.XStringToKeysym.restype = number
        self._x.XDefaultRootWindow.argtypes = self._x.XCloseDisplay.argtypes = [pointer]
        self._x.XKeysymToKeycode.argtypes = [pointer, number]
        self._x.XSync.argtypes = [pointer, ctypes.c_int]
        self._x.XSetInputFocus.argtypes = [pointer, number, ctypes.c_int, number]
        self._x.XQueryTree.argtypes = [pointer, number, *[pointer] * 4]
        self._test.XTestFakeKeyEvent.argtypes = [pointer, ctypes.c_uint, ctypes.c_int, number]
        self._test.XTestFakeButtonEvent.argtypes = [pointer, ctypes.c_uint, ctypes.c_int, number]
        self._test.XTestFakeRelativeMotionEvent.argtypes = [pointer, ctypes.c_int, ctypes.c_int, number]
        self._display = self._x.XOpenDisplay(display.encode())
        if not self._display:
            raise Unavailable(f"cannot open the display {display}")
        self._held: frozenset[str] = frozenset()

    def focus(self) -> None:
        """Give the keyboard to the only window. Without a window manager nothing else does."""
        root, parent, count = ctypes.c_ulong(), ctypes.c_ulong(), ctypes.c_uint()
        windows = ctypes.POINTER(ctypes.c_ulong)()
        top = self._x.XDefaultRootWindow(self._display)
        references = [ctypes.byref(item) for item in (root, parent, windows, count)]
        self._x.XQueryTree(self._display, top, *references)
        for index in range(count.value):
            self._x.XSetInputFocus(self._display, windows[index], 1, 0)
        self._x.XSync(self._display, 0)

    def set(self, keys: frozenset[str], dx: int = 0, dy: int = 0) -> None:
        """Hold exactly these keys (X names: w, space, Shift_L; mouse1 is a button), and move the mouse by px right and down."""
        for key in sorted(self._held ^ keys):
            if key.startswith("mouse"):
                self._test.XTestFakeButtonEvent(self._display, int(key[5:]), key in keys, 0)
                continue
            code = self._x.XKeysymToKeycode(self._display, self._x.XStringToKeysym(key.encode()))
            self._test.XTestFakeKeyEvent(self._display, code, key in keys, 0)
        self._held = keys
        if dx or dy:
            self._test.XTestFakeRelativeMotionEvent(self._display, dx, dy, 0)
        self._x.XSync(self._display, 0)

    def close(self) -> None:
        self._x.XCloseDisplay(self._display)


class Game:
    """A game process in lockstep. `next_frame` waits for a picture, `advance` lets the game draw the next one."""

    def __init__(
        self, command: Sequence[str], environment: dict[str, str], frame_s: float, preload: Sequence[Path] = ()
    ) -> None:
        """Start the game. environment: added to this process's own. frame_s: by how much the game's clock advances a frame.

        preload: libraries that are loaded into the game beside the grabber.
        """
        self._folder = Path(tempfile.mkdtemp(prefix="glgrab-"))
        path = self._folder / "socket"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        preloaded = ":".join(str(library) for library in (build_grabber(), *preload))
        variables = {**os.environ, **environment, "GLGRAB_SOCKET": str(path), "LD_PRELOAD": preloaded}
        self._process = subprocess.Popen(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout.fileno()
        os.set_blocking(self._output, False)
        self._advance_us, self._rest = round(1e6 * frame_s), b""
        self._connection: socket.socket | None = None
        self._lines: list[str] = []
        self._last_lines: list[str] = []  # for messages

    def __enter__(self) -> "Game":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._connection is not None:
            self._connection.close()
        self._listener.close()
        _stop(self._process)
        if self._process.stdout is not None:
            self._process.stdout.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def next_frame(self) -> NDArray[np.uint8]:
        """Wait for the next frame and return it, [H, W, 3] RGB. The game stands still until `advance`."""
        connection = self._connected()
        _, width, height = _HEAD.unpack(self._receive(connection, _HEAD.size))
        pixels = self._receive(connection, width * height * 4)
        return np.frombuffer(pixels, np.uint8).reshape(height, width, 4)[::-1, :, 2::-1]

    def advance(self) -> None:
        """Let the game run to its next frame."""
        self._connected().sendall(struct.pack("<I", self._advance_us))

    def take_lines(self) -> list[str]:
        """Return what the game has printed since the last call. Lines printed before a frame is drawn come with that frame."""
        self._read_output()
        lines, self._lines = self._lines, []
        return lines

    def _connected(self) -> socket.socket:
        end = time.monotonic() + _START_TIMEOUT_S
        while self._connection is None:
            self._read_output()
            if select.select([self._listener], [], [], 0.1)[0]:
                self._connection, _ = self._listener.accept()
            elif self._process.poll() is not None:
                raise AttemptFailed(f"the game ended with status {self._process.returncode}{self._last_words()}")
            elif time.monotonic() > end:
                raise AttemptFailed(f"the game drew nothing in {_START_TIMEOUT_S:g} s{self._last_words()}")
        return self._connection

    def _receive(self, connection: socket.socket, size: int) -> bytearray:
        buffer = bytearray(size)
        view, filled = memoryview(buffer), 0
        while filled < size:
            if not select.select([connection], [], [], 0.2)[0]:
                self._read_output()  # a full pipe would stop the game
                continue
            count = connection.recv_into(view[filled:])
            if not count:
                self._read_output()
                raise AttemptFailed(f"the game ended in the middle of a recording{self._last_words()}")
            filled += count
        return buffer

    def _read_output(self) -> None:
        while True:
            try:
                data = os.read(self._output, 1 << 16)
            except BlockingIOError:
                return
            if not data:
                return
            *lines, self._rest = (self._rest + data).split(b"\n")
            decoded = [line.decode(errors="replace") for line in lines]
            self._lines += decoded
            self._last_lines = (self._last_lines + decoded)[-3:]

    def _last_words(self) -> str:
        return f"; its last lines: {' | '.join(self._last_lines)}" if self._last_lines else ""


def _stop(process: "subprocess.Popen[Any]") -> None:
    """End a process, by force if it does not end itself."""
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
