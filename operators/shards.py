"""Encode kept clips, once, for their shard."""

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from curation import encode, storage
from curation.encode import Encoding
from curation.schema import Row
from curation.video import Span
from operators.op import each


@each
def encode_clip(row: Row, how: Encoding) -> Row:
    """Decode the clip's span and store it as mp4, cut to the picture and scaled to the recipe's size.

    The bytes wait in this process's scratch folder (`scratch_file`) until the unit's commit puts them into the shard.
    """
    crop = row["picture"]
    span = Span(row["start_s"], row["end_s"])
    clip = encode.encode(row["source_uri"], span, (crop["x"], crop["y"], crop["w"], crop["h"]), how)
    scratch_file(row["clip_id"]).write_bytes(clip.mp4)
    return {**row, "stored_width": clip.width, "stored_height": clip.height, "stored_frames": clip.frames}


def scratch_file(clip_id: str) -> Path:
    """Where an encoded clip waits on its node."""
    return _scratch(os.getpid()) / f"{clip_id}.mp4"


@cache
def _scratch(pid: int) -> Path:
    """The folder of this process; removed at exit, and by the next process if this one is killed."""
    for folder in Path(tempfile.gettempdir()).glob("gamecraft-scratch-*"):
        owner = folder.name.rpartition("-")[2]
        if owner.isdigit() and not storage.process_lives(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)
    folder = Path(tempfile.gettempdir()) / f"gamecraft-scratch-{pid}"
    folder.mkdir(exist_ok=True)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
