"""A part of a long video is read by one open and few bytes, from S3 as from a disk, and never from two versions."""

import itertools
import math
from pathlib import Path

import av
import pytest

from bench.chunk_reads import own_bytes
from bench.long_videos import CONTAINERS, write_clip, write_long_video
from curation import s3 as s3_module
from curation import storage, versions
from curation.errors import NotExact, SourceChanged, UnreadableVideo
from curation.media import decode
from curation.media.decode import decode_part
from curation.media.seek import open_part
from curation.media.source import probe
from curation.partition.chunks import ScanSettings, scan_chunk
from curation.partition.optical_flow import FlowSettings

pytest.importorskip("moto", reason="the S3 store of the tests is in the extra 'dev'")

SECONDS, CLIP_S = 40.0, 4.0


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    write_clip(folder / "clip.mp4", CLIP_S, 10, 680_000)
    for name, options in CONTAINERS.items():
        write_long_video(folder / name, folder / "clip.mp4", SECONDS, CLIP_S, options)
    return folder


@pytest.fixture(autouse=True)
def fresh():
    """Let each test begin as a new process, and end as one: nothing is kept of sources."""
    decode.clear_caches()
    versions.pin({})
    s3_module._kept.clear()
    s3_module._passing.clear()
    yield
    decode.clear_caches()
    versions.pin({})


@pytest.fixture
def opened(monkeypatch) -> list:
    """What `av.open` was given."""
    calls, real = [], av.open
    monkeypatch.setattr(av, "open", lambda file, *args, **options: calls.append(file) or real(file, *args, **options))
    return calls


@pytest.fixture(scope="module")
def pictures(videos) -> list:
    """All frames, which the containers share: times to the millisecond, and pictures."""
    return [shown(timed) for timed in decode.decode(str(videos / "index_first.mp4"))]


def shown(timed) -> tuple[float, int]:
    return round(timed[0], 3), hash(timed[1].to_ndarray().tobytes())


def served(s3, path: Path) -> str:
    uri = f"{s3.uri}/{path.name}"
    storage.put(uri, path.read_bytes())
    s3.fetched.clear()
    return uri


def part(uri: str, start_s: float, end_s: float, lead_s: float = 3.0) -> list | None:
    """Return the frames of a part, and those of the time before it."""
    begin_s = max(0.0, start_s - lead_s)
    with open_part(uri, begin_s, end_s, end_s - lead_s) as frames:
        if frames is None:
            return None
        timed = decode_part(probe(uri), frames, begin_s, "scan chunk")
        return [
            (time_s, hash(frame.to_ndarray().tobytes())) for time_s, frame in itertools.takewhile(lambda t: t[0] < end_s, timed)
        ]


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_part_costs_one_open_and_little_more_than_its_bytes(name, videos, pictures, s3, opened):
    own = own_bytes(videos / name, 12.0, 28.0)  # from the key frame before the lead-in
    uri = served(s3, videos / name)
    probe(uri)
    opening = sum(s3.fetched)
    decode.clear_caches()
    s3_module._kept.clear()
    s3.fetched.clear()
    opened.clear()
    assert part(uri, 16.0, 28.0) == [timed for timed in pictures if 13.0 <= timed[0] < 28.0]
    assert len(opened) == 1
    assert sum(s3.fetched) - opening <= 1.15 * own
    assert len(s3.fetched) <= {"fragments.mp4": 47, "plain.ts": 40}.get(name, 18)
    # The next part of this process opens nothing, and fetches no index.
    s3.fetched.clear()
    assert part(uri, 28.0, math.inf) == [timed for timed in pictures if timed[0] >= 25.0]
    assert len(opened) == 1
    assert sum(s3.fetched) <= 1.3 * own


def test_what_is_announced_comes_in_few_requests_and_pushes_out_no_index(s3, monkeypatch):
    monkeypatch.setattr(s3_module, "RANGE_BYTES", 256 << 10)
    monkeypatch.setattr(s3_module, "_PASSING_BYTES", 512 << 10)
    data = bytes(range(256)) * (12 << 10)
    storage.put(f"{s3.uri}/a", data)
    s3.fetched.clear()
    with storage.open_ranges(f"{s3.uri}/a") as file:
        assert file.read(100) == data[:100]
        file.seek(1_000_000)
        file.announce(1_000_000, 2_500_000)
        read = bytearray()
        while len(read) < 1_500_000:
            read += file.read(30_000)
    assert read == data[1_000_000 : 1_000_000 + len(read)]
    assert len(s3.fetched) == 1 + math.ceil(1_516_000 / (256 << 10))
    assert sum(s3.fetched) <= 16_384 + 1_500_000 + 2 * 16_384
    assert sum(map(len, s3_module._passing.values())) <= 512 << 10
    with storage.open_ranges(f"{s3.uri}/a") as file:
        before = len(s3.fetched)
        assert file.read(100) == data[:100]
        assert len(s3.fetched) == before, "the first block is kept"
        file.seek(2_500_000 + 20_000)
        file.read(10)
        assert s3.fetched[-1] == 16_384, "one block where nothing is announced"


def test_a_file_that_is_replaced_while_a_part_is_read_fails(videos, s3, monkeypatch):
    monkeypatch.setattr(s3_module, "RANGE_BYTES", 64 << 10)
    uri = served(s3, videos / "index_first.mp4")
    versions.pin({uri: storage.version(uri)})
    with pytest.raises(SourceChanged), open_part(uri, 10.0, 40.0, 37.0) as frames:  # noqa: PT012
        next(frames)
        storage.put(uri, (videos / "index_last.mp4").read_bytes())
        for _ in frames:
            pass
    with pytest.raises(SourceChanged, match="changed since it was listed"):
        part(uri, 20.0, 22.0)
    # Without a pinned version, a part that is opened later shows what the file holds then.
    versions.pin({})
    decode.clear_caches()
    before = part(uri, 20.0, 22.0)
    storage.put(uri, (videos / "plain.mkv").read_bytes())
    assert part(uri, 20.0, 22.0) == before


def test_a_local_file_that_was_left_open_is_opened_anew_once_it_changed(videos, tmp_path, opened):
    uri = str(tmp_path / "a.mp4")
    Path(uri).write_bytes((videos / "index_first.mp4").read_bytes())
    versions.pin({uri: storage.version(uri)})
    assert part(uri, 20.0, 22.0)
    assert part(uri, 30.0, 32.0)
    assert len(opened) == 1
    Path(uri).write_bytes((videos / "index_last.mp4").read_bytes())
    with pytest.raises(SourceChanged):
        part(uri, 20.0, 22.0)
    versions.pin({})
    assert part(uri, 20.0, 22.0)
    assert len(opened) == 2


def test_a_truncated_file_gives_what_it_has_or_says_that_it_cannot(videos, s3, tmp_path):
    settings = ScanSettings(FlowSettings(backend="dis"))
    for name, reason in (("index_first.mp4", NotExact), ("plain.ts", NotExact), ("plain.mkv", NotExact)):
        data = (videos / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        uri = served(s3, tmp_path / name)
        assert part(uri, 10.0, 12.0) == part(str(videos / name), 10.0, 12.0)
        with pytest.raises(reason):
            scan_chunk(uri, settings, 30.0, 33.0)
    data = (videos / "index_last.mp4").read_bytes()
    (tmp_path / "index_last.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(UnreadableVideo, match="header is missing or damaged"):
        part(served(s3, tmp_path / "index_last.mp4"), 10.0, 12.0)


def test_a_server_that_ignores_ranges_is_the_fault_of_the_server(videos, front, monkeypatch):
    uri = f"{front.uri}/a.mp4"
    storage.put(uri, (videos / "clip.mp4").read_bytes())
    front.before = lambda request: request.headers.pop("range", None) and None
    with pytest.raises(OSError, match="requested a range, the answer has Content-Range None, 3 times"):
        part(uri, 0.0, math.inf)


@pytest.mark.parametrize("count", [1, 2])
def test_a_video_of_one_frame_or_two_is_a_part(count, s3, tmp_path, moving, write):
    uri = served(s3, Path(write(tmp_path / "a.mp4", moving(count, 64, 48), (k / 10 for k in range(count)))))
    assert len(part(uri, 0.0, math.inf)) == count
    assert part(uri, 5.0, math.inf) == []
    assert part(uri, 40.0, math.inf) is None
    with pytest.raises(NotExact, match="too few frames"):
        scan_chunk(uri, ScanSettings(FlowSettings(backend="dis")), 0.0, 5.0)
