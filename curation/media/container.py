"""Open a file, choose its video track, and give its packets and frames with time stamps (PyAV).

This is the lowest of the modules that read footage. It knows what is not a video, which tracks are previews, and what to do
with damaged packets and missing time stamps. `curation.media.source` says what a source is, and `curation.media.decode` reads
spans of it.
"""

import errno
import hashlib
import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from typing import Any, NamedTuple, cast

import av
from av.stream import Discard, Disposition

from curation import storage, versions
from curation.errors import UnreadableVideo, is_machine_fault
from curation.processes import ProcessLocal
from curation.uris import require_version
from curation.worker_state import worker

av.logging.set_level(av.logging.PANIC)
# Options of a decoder whose frames carry their quantisers, which picture quality reads (`curation.quality.quantiser`).
WITH_QUANTISERS = {"export_side_data": "venc_params"}

# Containers that stamp packets in decoding order, or not at all. A frame takes the time of the packet that released it.
_UNSTAMPED = frozenset({"avi", "h264", "hevc", "vvc", "obu", "m4v", "mpegvideo", "vc1"})
# Steam's recordings, and others. FFmpeg reads them only where it was built with an XML parser.
_DASH = (
    "a recording in parts (DASH); join them in its folder and name the result: cat init-stream0.m4s chunk-stream0-*.m4s > a.mp4"
)
# FFmpeg would render or follow these, although they are not videos. Formats of pictures end in "_pipe" when read from a stream.
_NOT_VIDEO = {
    **dict.fromkeys(("tty", "bin", "adf", "idf", "xbin"), "text, not a video"),
    **dict.fromkeys(("image2", "image2pipe", "ico"), "a picture, not a video"),
    **dict.fromkeys(("hls", "concat", "imf", "sdp", "rtsp"), "a playlist, not a video; name the files that it lists"),
    "dash": _DASH,
}
# Video streams that hold still pictures: covers and thumbnails.
_STILL_PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
# What a decoder raises for bytes that it cannot parse. Any other error (no memory) is not the source's fault.
_DAMAGE = (av.InvalidDataError, av.PatchWelcomeError, av.ExternalError, av.UnknownError, av.BugError, av.ArgumentError)

_threads = 1


def set_threads(count: int) -> None:
    """Set how many threads a decoder may use. Scalers and encoders always use one, because x264's pixels depend on it."""
    global _threads
    _threads = count


class OpenVideo(NamedTuple):
    """An open container with its video stream, and our own file under it where it is on S3."""

    container: av.container.InputContainer
    stream: av.VideoStream
    file: storage.RangeFile | None

    def position(self) -> int:
        """Return the byte up to which the demuxer has read, 0 where FFmpeg reads the file itself."""
        return self.file.tell() if self.file else 0

    def announce(self, end: int) -> None:
        """Say that the bytes from the position up to `end` will be read, so that they are fetched by few requests."""
        if self.file:
            self.file.announce(self.file.tell(), end)


@contextmanager
def open_video(uri: str) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a container and choose its video stream. Both are closed on exit, also after an error.

    Raises `UnreadableVideo` with the reason where the file is not a video or its header is broken.
    """
    with open_file(uri) as video:
        yield video.container, video.stream


@contextmanager
def open_file(uri: str) -> Iterator[OpenVideo]:
    """Open a container, choose its video stream, and yield both with the file under them. Errors are those of `open_video`."""
    if uri.lower().endswith(".mpd") and storage.read(uri, 0, 1):
        raise UnreadableVideo(f"is {_DASH}")
    with _ffmpeg_input(uri) as file, _errors_of_footage(file), _open_container(file) as container:
        yield OpenVideo(container, _video_stream(container), None if isinstance(file, str) else file)


_left_open = ProcessLocal[tuple[str, str, ExitStack, OpenVideo]]()


@contextmanager
def reopen_file(uri: str) -> Iterator[tuple[OpenVideo, bool]]:
    """As `open_file`, but leave the file open, for the next call of this process. Yield also whether it was open before.

    If so, its demuxer and decoder are somewhere in the file, and the caller must seek. A long video's index is then read once.
    A file that has another version since is opened anew, or raises `SourceChanged` where this unit is bound to the one
    before. A process leaves one file open. After an error, and by `close_left_open`, it is closed.
    """
    left, now = _left_open.get(), storage.version(uri)
    _left_open.put(None)
    require_version(uri, versions.register_open(uri), now)
    if left and left[:2] == (uri, now):
        stack, video = left[2:]
    else:
        if left:
            left[2].close()
        stack = ExitStack()
        video = stack.enter_context(open_file(uri))
    try:
        with _errors_of_footage(video.file or f"file:{storage.normal(uri)}"):
            yield video, bool(left and left[3] is video)
    except BaseException:
        stack.close()
        raise
    _left_open.put((uri, now, stack, video))


def close_left_open() -> None:
    """Close the file that `reopen_file` has left open in this process."""
    if left := _left_open.get():
        _left_open.put(None)
        left[2].close()


@contextmanager
def _ffmpeg_input(uri: str) -> Iterator[Any]:
    """Yield what FFmpeg opens: our own file object for S3, else a `file:` name, which it cannot mistake for a protocol."""
    token = versions.register_open(uri)
    if not storage.is_s3(uri):
        yield f"file:{storage.normal(uri)}"
        return
    with storage.open_ranges(uri, token) as file:
        yield file


@contextmanager
def _open_container(file: Any) -> Iterator[av.container.InputContainer]:
    """Open the container. Only local files are followed, so that a playlist reaches no network before it is refused."""
    with _errors_of_footage(file, "opened"):
        container = av.open(file, metadata_errors="ignore", options={"protocol_whitelist": "file"})
    with container:
        yield cast(av.container.InputContainer, container)


@contextmanager
def _errors_of_footage(file: Any, action: str = "read") -> Iterator[None]:
    """Turn FFmpeg's errors into `UnreadableVideo` where the bytes are at fault, and not the machine."""
    try:
        yield
    except av.InvalidDataError as error:
        raise UnreadableVideo(f"cannot be {action}: no known container, or its header is missing or damaged") from error
    except av.FFmpegError as error:
        if is_machine_fault(error):
            raise
        if error.errno == errno.EIO and isinstance(file, str):
            _read_whole(file.removeprefix("file:"))  # raises where it is the disk that cannot read
        raise UnreadableVideo(f"cannot be {action}: {error.strerror}") from error


def _read_whole(path: str) -> None:
    """Read a local file to its end. OSError where the disk fails, which FFmpeg reports in the same way as unparsable bytes."""
    with open(path, "rb") as file:
        while file.read(1 << 20):
            pass


def _video_stream(container: av.container.InputContainer) -> av.VideoStream:
    name = container.format.name
    if reason := "a picture, not a video" if name.endswith("_pipe") else _NOT_VIDEO.get(name):
        raise UnreadableVideo(f"is {reason}")
    tracks = video_tracks(container)
    if not tracks:
        raise UnreadableVideo("holds no video stream")
    stream = max(tracks, key=_rank)
    if stream.codec_context is None:
        raise UnreadableVideo("its codec is not known to this decoder")
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all  # demuxers that know where its packets are do not read them
    stream.codec_context.thread_count = _threads
    stream.codec_context.options = dict(WITH_QUANTISERS)
    return stream


def video_tracks(container: av.container.InputContainer) -> list[av.VideoStream]:
    """Return the tracks that are video, without covers and thumbnails."""
    return [s for s in container.streams.video if not s.disposition & _STILL_PICTURES]


def _rank(stream: av.VideoStream) -> tuple[bool, bool, bool, int]:
    """Return the sort key of a track; the largest is chosen, and of equal ones the first.

    In order: it can be decoded, it holds frames, the container marks it as default, its size in px. A preview or a camera's
    small copy may come before the recording.
    """
    context = stream.codec_context
    if context is None:
        return False, False, False, 0
    return True, stream.frames > 0, bool(stream.disposition & Disposition.default), context.width * context.height


def describe_track(stream: av.VideoStream) -> str:
    """Return a track's codec and size in words: "h264 640x480"."""
    context = stream.codec_context
    return f"{context.name} {context.width}x{context.height}" if context else "unknown codec"


def stamped_frames(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Yield frames in presentation order, each with a time stamp `pts` in the stream's time base.

    One that has none follows the frame before by one step; so does, in containers that stamp in decoding order, one whose stamp
    does not increase. Packets that the decoder refuses count in `worker.damage`.
    """
    decoding_order = container.format.name in _UNSTAMPED
    step = max(1, round(1 / ((stream.average_rate or 25) * cast(Fraction, stream.time_base))))
    last: int | None = None
    for frame in _decoded_frames(container, stream):
        stamp = frame.dts if decoding_order else frame.pts
        if stamp is None or (decoding_order and last is not None and stamp <= last):
            stamp = 0 if last is None else last + step
        frame.pts = last = stamp
        yield frame


def _decoded_frames(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Yield what the decoder returns. Packets that it refuses are skipped; these, and what it conceals, count as damage."""
    for packet in _packets(container, stream):
        try:
            frames = stream.decode(packet)
        except _DAMAGE:
            worker.damage["damaged packets"] += 1
            continue
        worker.damage["damaged packets"] += (packet is not None and packet.is_corrupt) or any(
            frame.is_corrupt for frame in frames
        )
        yield from frames


def _packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[Any]:
    """Yield packets up to the end, or up to where the container itself is broken. The last one flushes the decoder."""
    try:
        yield from container.demux(stream)
    except av.InvalidDataError:
        worker.damage["damaged packets"] += 1
        yield None


def packet_digest(uri: str, max_packets: int | None = None) -> str:
    """Return a name for a recording that depends only on its coded video: 16 hex digits of SHA-256.

    It covers sizes and bytes of the track's first `max_packets` packets, None: of all. Nothing is decoded. A remux from MKV to
    MP4 keeps the packets. A remux from or to MPEG-TS writes them in another form.
    """
    sha = hashlib.sha256()
    with open_video(uri) as (container, stream):
        for packet in itertools.islice(_packets(container, stream), max_packets):
            if packet is not None and packet.size:
                sha.update(packet.size.to_bytes(8, "big"))
                sha.update(packet)
    return sha.hexdigest()[:16]
