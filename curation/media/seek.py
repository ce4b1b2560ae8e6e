"""Seek in a source so that the frames after the seek equal those of a decode from the start."""

import itertools
import math
from collections.abc import Iterator
from functools import partial
from typing import cast

import av

from curation.media.container import open_video, stamped_frames
from curation.media.repair import repair_frames
from curation.media.source import Source, probe

# How far to step back, in seconds, when a seek lands after its target or on a frame that is not a key frame.
_STEPS_BACK_S = (0.0, 5.0, 20.0)
# A decode begins near a time if it begins at most this long before. Some recordings have key frames minutes apart, or only one.
_NEAR_S = 30.0


def can_seek_near(uri: str, time_s: float) -> bool:
    """Return whether a decode can begin, exactly, at most half a minute before a time. Costs a few seeks and a frame each."""
    source = probe(uri)
    if not source.seekable or time_s <= _NEAR_S:
        return source.seekable
    with open_video(uri) as (container, stream):
        first = next(_seek_to_key_frame(container, stream, source, time_s) or iter(()), None)
        return first is not None and source.time_s(cast(int, first.pts)) >= time_s - _NEAR_S


def frames_from(
    container: av.container.InputContainer, stream: av.VideoStream, source: Source, start_s: float
) -> Iterator[av.VideoFrame]:
    """Yield repaired frames from a point at or before `start_s`: a key frame near it, else the start of the source."""
    repair = partial(repair_frames, interlaced=source.interlaced, transfer=source.transfer)
    if not (source.seekable and start_s > 0):
        yield from repair(stamped_frames(container, stream))
        return
    frames = _seek_to_key_frame(container, stream, source, start_s)
    if frames is not None:
        yield from repair(frames, skip=int(source.interlaced))
        return
    with open_video(source.uri) as (reopened, its_stream):
        yield from repair(stamped_frames(reopened, its_stream))


def _seek_to_key_frame(
    container: av.container.InputContainer, stream: av.VideoStream, source: Source, start_s: float
) -> Iterator[av.VideoFrame] | None:
    """Seek, and return the frames from there if they can be trusted: the first must be a key frame at or before the target.

    In an interlaced source the second frame must be at or before it too. The first lacks the neighbour that its fields are
    filled in from, so the caller drops it. MPEG-TS seeks land after the target, and intra-refresh streams on a picture
    without its references. For those it steps back. Returns None where the steps lead to the start of the source.
    """
    target = source.origin + math.floor(start_s / source.time_base)
    for back_s in _STEPS_BACK_S:
        point = target - round(back_s / source.time_base)
        if point <= source.origin or not _seek(container, stream, point):
            return None
        frames = stamped_frames(container, stream)
        first = next(frames, None)
        if first is not None and first.key_frame and cast(int, first.pts) <= target:
            lead = [first, *itertools.islice(frames, int(source.interlaced))]
            if len(lead) == 1 + source.interlaced and cast(int, lead[-1].pts) <= target:
                return itertools.chain(lead, frames)
    return None


def _seek(container: av.container.InputContainer, stream: av.VideoStream, point: int) -> bool:
    """Seek, and return whether the container could: one without an index may refuse."""
    try:
        container.seek(point, stream=stream, backward=True)
    except av.FFmpegError:
        return False
    return True
