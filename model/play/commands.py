"""What the commands `gamecraft play`, `rollout` and `replay` do, given an engine."""

import os
import threading
import webbrowser
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import cv2
import numpy as np
import uvicorn

from curation.errors import InputError, Unavailable
from model.control.spec import ControlState
from model.play.engine import BlockFrames, Engine, Start
from model.play.hub import Load
from model.play.keys import parse_keys
from model.play.limits import Limits
from model.play.record import check_identity, read_record, start_recorded
from model.play.record import replay as replayed
from model.play.server import LOOPBACK, create_app
from model.play.video import Mp4Writer

Log = Callable[[str], None]
_WS_MAX_BYTES = 12 * 2**20  # a start image of 8 MB in base64


def play(load: Load, host: str, port: int, sessions: int, attract: str, opens_browser: bool, log: Log) -> None:
    """Serve the play page until interrupted. At a loopback address only this machine's own names are accepted."""
    if attract:
        read_record(attract)  # a wrong path is reported before the engine loads
    hosts = LOOPBACK if host in LOOPBACK else ()
    server: uvicorn.Server

    def stop() -> None:
        server.should_exit = True

    app = create_app(load, Limits(sessions=sessions), attract, hosts, on_failure=stop, log=log)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            log_level="warning",
            ws_max_size=_WS_MAX_BYTES,
            ws_per_message_deflate=False,
            timeout_graceful_shutdown=2,
        )
    )
    url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '') else host}:{port}/"  # noqa: S104 -- compared, not bound
    log(f"play at {url} (Ctrl-C stops)")
    if opens_browser:
        opener = threading.Timer(1.0, webbrowser.open, (url,))
        opener.daemon = True
        opener.start()
    try:
        server.run()
    except SystemExit:
        raise Unavailable(f"cannot listen at {host}:{port}; is it taken? Try another --port") from None
    if app.state.hub.failure:
        raise app.state.hub.failure


def rollout(load: Callable[[], Engine], image: str, keys: str, prompt: str, seed: int, out: str, record: str, log: Log) -> None:
    """Play a script of keys, and write a video, a record, or both. The script is filled up with no input to whole blocks.

    image: a file, or the name of one of the engine's start images; empty: the first of them.
    """
    controls = parse_keys(keys)  # a wrong script is reported before the engine loads
    engine = load()
    start = Start(start_picture(engine, image), prompt, seed)
    length = engine.info.block_frames
    controls += [ControlState()] * (-len(controls) % length)
    session, first = start_recorded(engine, start)

    def blocks() -> Iterable[BlockFrames]:
        yield first
        for at in range(0, len(controls), length):
            block = session.generate(controls[at : at + length])
            yield block
            session.commit()

    if out:
        _write_video(blocks(), engine.info.fps, out)
        log(f"{out}: {1 + len(controls)} frames")
    else:
        for _ in blocks():
            pass
    if record:
        _write(record, session.text().encode())
        log(f"{record}: {len(controls) // length} blocks")


def replay(load: Callable[[Mapping[str, Any]], Engine], path: str, out: str, log: Log) -> None:
    """Play a record again, check each frame, and write the video. InputError where the frames cannot be the same.

    load: load the engine that the record's identity names: its backend and its switches.
    """
    record = read_record(path)
    engine = load(record.header.identity)
    check_identity(record, engine)
    if record.is_truncated:
        log(f"{path}: the last line was cut off; {len(record.blocks)} blocks are whole")
    blocks = replayed(record, engine)
    if out:
        _write_video(blocks, engine.info.fps, out)
    else:
        for _ in blocks:
            pass
    log(f"{path}: {len(record.blocks)} blocks replayed, all frames equal" + (f"; {out}" if out else ""))


def start_picture(engine: Engine, image: str) -> np.ndarray:
    """Return the picture in a file, or the engine's start image of this name; the first one for an empty name."""
    images = engine.info.start_images
    for start_image in images:
        if image in ("", start_image.name):
            return start_image.picture
    names = ", ".join(start_image.name for start_image in images) or "none"
    if not os.path.isfile(image):
        raise InputError(f"--image {image}: no such file, and no start image of that name; there are {names}")
    picture = cv2.imread(image, cv2.IMREAD_COLOR)
    if picture is None:
        raise InputError(f"--image {image}: not a picture that OpenCV reads")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def _write_video(blocks: Iterable[BlockFrames], fps: float, path: str) -> None:
    writer = Mp4Writer(fps)
    for block in blocks:
        writer.add(block.frames)
    _write(path, writer.finish())


def _write(path: str, data: bytes) -> None:
    try:
        with open(path, "wb") as file:
            file.write(data)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path}: cannot be written there; does the folder exist?") from None
