"""Seek in a source so that the frames after the seek equal those of a decode from the start."""

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, cast

import av

from curation.media.container import OpenVideo, open_file, open_video, reopen_file, stamped_frames
from curation.media.repair import repair_frames
from curation.media.source import Source, probe, probe_open

# How far to step back, in seconds, when a seek lands after its target or on a frame that is not a key frame.
_STEPS_BACK_S = (0.0, 2.0, 5.0, 20.0)
# A decode begins near a time if it begins at most this long before. Some recordings have key frames minutes apart, or only one.
_NEAR_S = 30.0
# A decoder holds frames back and returns them when it has read on so far.
_TAIL_S = 0.5


class _Place(NamedTuple):
    """A key frame from which a decode can begin, with the frames from there."""

    time_s: float
    position: int  # the byte up to which the file was read for it
    frames: Iterator[av.VideoFrame]


@contextmanager
def open_part(uri: str, start_s: float, end_s: float, next_s: float) -> Iterator[Iterator[av.VideoFrame] | None]:
    """Open a source and yield an iterator over its repaired frames, for a reader of those in [start_s, end_s).

    They come in order of presentation, from a key frame at or at most 30 s before `start_s`, or from the first frame where
    `start_s` is at most 30 s. The reader stops at `end_s`. None instead where no exact decode can begin there, or at `next_s`,
    where the reader of the next part begins. Times are in seconds from the first frame, infinite for a part that ends with the
    source. On S3 the place of `next_s` in the file limits what is fetched. The file stays open for the next call. Errors are
    those of `container.open_file`.
    """
    with reopen_file(uri) as (video, was_open):
        # The decoder always has the first frame behind it, so what it says of frames after a seek depends on no earlier part.
        source = probe(uri) if was_open else probe_open(uri, video.container, video.stream)
        following = None if math.isinf(next_s) else _enter(video, source, next_s)
        if not source.seekable or (following is None and _NEAR_S < next_s < math.inf):
            yield None
            return
        begin = _enter(video, source, start_s)
        if begin:
            _announce(video, begin, following, end_s)
            yield _repaired(source, begin.frames, skip=int(source.interlaced))
            return
        if start_s > _NEAR_S:
            yield None
            return
    with open_file(uri) as video:
        frames = stamped_frames(video.container, video.stream)
        first = list(itertools.islice(frames, 1))
        _announce(video, _Place(0.0, video.position(), frames), following, end_s)
        yield _repaired(source, itertools.chain(first, frames))


def _enter(video: OpenVideo, source: Source, time_s: float) -> _Place | None:
    """Seek to a key frame at or before a time, at most half a minute; None where a decode cannot begin there exactly."""
    if not (source.seekable and time_s > 0):
        return None
    frames = _seek_to_key_frame(video.container, video.stream, source, time_s)
    first = next(frames, None) if frames else None
    if frames is None or first is None:
        return None
    begin_s = source.time_s(cast(int, first.pts))
    return _Place(begin_s, video.position(), itertools.chain([first], frames)) if begin_s >= time_s - _NEAR_S else None


def _announce(video: OpenVideo, begin: _Place, following: _Place | None, end_s: float) -> None:
    """Say up to which byte a part will be read, from the places in the file of its first frame and of the next part's."""
    if following and following.time_s > begin.time_s and following.position > begin.position:
        bytes_per_s = (following.position - begin.position) / (following.time_s - begin.time_s)
        video.announce(round(following.position + (end_s + _TAIL_S - following.time_s) * bytes_per_s))


def frames_from(
    container: av.container.InputContainer, stream: av.VideoStream, source: Source, start_s: float
) -> Iterator[av.VideoFrame]:
    """Yield repaired frames from a point at or before `start_s`: a key frame near it, else the start of the source."""
    if not (source.seekable and start_s > 0):
        yield from _repaired(source, stamped_frames(container, stream))
        return
    frames = _seek_to_key_frame(container, stream, source, start_s)
    if frames is not None:
        yield from _repaired(source, frames, skip=int(source.interlaced))
        return
    with open_video(source.uri) as (reopened, its_stream):
        yield from _repaired(source, stamped_frames(reopened, its_stream))


def _repaired(source: Source, frames: Iterator[av.VideoFrame], skip: int = 0) -> Iterator[av.VideoFrame]:
    return repair_frames(frames, interlaced=source.interlaced, transfer=source.transfer, skip=skip)


def _seek_to_key_frame(
    container: av.container.InputContainer, stream: av.VideoStream, source: Source, start_s: float
) -> Iterator[av.VideoFrame] | None:
    """Seek, and return the frames from there if they can be trusted: the first must be a key frame at or before the target.

    In an interlaced source the second frame must be at or before it too. The first lacks the neighbour that its fields are
    filled in from, so the caller drops it. MPEG-TS seeks land after the target, and intra-refresh streams on a picture
    without its references. For those it steps back. None where the container cannot seek, a step reaches
    the start of the source, or none of them (0, 2, 5 and 20 s) lands on such a frame.
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
