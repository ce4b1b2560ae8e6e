"""The report of a small real output: what it says, what it escapes, and that a browser shows it and plays its clips."""

import base64
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest

from curation import shards, storage
from curation.quality.luminance import QualityLimits
from curation.schema import CLIP, VIDEO, columns, conform
from pipelines import ledger, recipes, run, runners
from pipelines.ledger import Record
from pipelines.phases import work
from pipelines.report import svg
from pipelines.report.clips import MAX_SHEET_CLIPS, MAX_TIMELINES
from pipelines.report.output import read_output
from pipelines.report.page import write_report

HOSTILE = """<img src=x onerror=alert(1)> & "quoted" 'clip.mp4"""
FPS, SIZE = 12, (320, 180)
JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgICAgMCAgIDAwMDBAYEBAQEBAgGBgUGCQgKCgkICQkKDA8MCgsOCwkJDRENDg8QEBEQCgwSExIQEw8Q"
    "EBD/wAALCAABAAEBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAACf/EABQQAQAAAAAAAAAAAAAAAAAAAAD/2gAIAQEAAD8AVN//2Q=="
)


def _film(path: Path) -> None:
    """Seven seconds of a view that turns, seven of darkness, one of another view: kept, too dark, too short."""
    random = np.random.default_rng(5)
    views = [np.kron(random.integers(30, 220, (30, 120, 3)), np.ones((6, 8, 1))).astype(np.uint8) for _ in range(2)]
    dark = np.full((SIZE[1], SIZE[0], 3), 4, np.uint8)
    frames = [np.roll(views[0], -10 * i, 1)[: SIZE[1], : SIZE[0]] for i in range(7 * FPS)]
    frames += [dark] * 7 * FPS + [255 - views[1][: SIZE[1], : SIZE[0]]] * FPS
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An output of three sources: the film under a hostile name, a copy of it, and a file that is not a video."""
    folder = tmp_path_factory.mktemp("report")
    films = folder / "films"
    films.mkdir()
    _film(films / HOSTILE)
    shutil.copy(films / HOSTILE, films / "twice.mp4")
    (films / "broken.mp4").write_bytes(b"no video " * 99)
    out = str(folder / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runners, "run_local", lambda phase, units, show: (work(phase, unit) for unit in units))
        run.curate([str(films)], out, _without_quality(recipes.smoke()))
    return out


def _without_quality(recipe: recipes.Recipe) -> recipes.Recipe:
    """Views of random blocks look like a coarse encoding, but these tests need kept clips."""
    return replace(recipe, score=replace(recipe.score, quality=QualityLimits(min_iqa=None)))


@pytest.fixture(scope="module")
def page(made: str) -> str:
    return storage.read(write_report(made)).decode()


class _Text(HTMLParser):
    """The visible text by section, and every tag with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.sections: dict[str, str] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._section, self._hidden = "", 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag in ("section", "header", "dialog"):
            self._section = attributes.get("id") or self._section
        self._hidden += tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("style", "script")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            before = self.sections.get(self._section, "")
            self.sections[self._section] = " ".join(f"{before} {data}".split())


def test_header_says_what_went_in_and_what_came_out(page: str) -> None:
    top = _Text(page).sections["top"]
    assert "smoke" in top
    assert "Input: 3 sources with 15 s of readable video." in top
    assert " in 1 shard." in top


def test_funnel_counts_each_step_and_names_what_fell_out(made: str, page: str) -> None:
    text, output = _Text(page).sections["funnel"], read_output(made)
    assert "Sources 3 sources" in text
    assert "Readable, no duplicates 1 source 15 s" in text
    assert "1 duplicate, 1 unreadable" in text
    assert f"Cut into clips {len(output.clips)} clips 15 s" in text
    assert "too short" in text
    assert "too dark" in text
    assert f"Stored in shards {output.kept.sum()} clip" in text


def test_reasons_stand_with_their_numbers_and_pictures(page: str) -> None:
    parsed = _Text(page)
    removed = parsed.sections["removed"]
    assert re.search(r"too short 1 clip, 1.0 s", removed)
    assert "mean luma" in removed
    assert "No clip failed." in removed
    assert "unreadable" in removed
    assert "duplicate" in removed
    titles = [attrs["title"] for tag, attrs in parsed.tags if tag == "figure"]
    assert any(re.search(r"too short: 1.00 s < 3 s$", title or "") for title in titles)


def test_scores_show_the_limits_of_the_recipe(page: str) -> None:
    scores = _Text(page).sections["scores"]
    for name in ("luma_mean", "flashes_hz", "fade_share", "motion_camera", "motion_object", "length"):
        assert name in scores
    assert "at least 16" in scores
    assert "at most 235" in scores
    assert "at least 3" in scores
    assert "px/frame at 320 wide" in scores


def test_timeline_draws_scenes_curves_regimes_and_clips(made: str, page: str) -> None:
    parsed, output = _Text(page), read_output(made)
    classes = [attrs.get("class") or "" for tag, attrs in parsed.tags if tag in ("rect", "path")]
    assert sum(c.startswith("clip ") for c in classes) == len(output.clips)
    assert classes.count("curve") == 2
    assert classes.count("scene") >= 2
    assert any(name.startswith("r-") for name in classes)


def test_kept_clips_link_to_playable_copies_of_what_the_shard_holds(made: str, page: str) -> None:
    links = {attrs["href"] for tag, attrs in _Text(page).tags if tag == "a" and "data-clip" in attrs}
    output = read_output(made)
    kept = [row for row in output.clips.to_pylist() if not row["reject"]]
    assert links == {f"preview/{row['clip_id']}.mp4" for row in kept}
    index = shards.read_index(made, "000000")
    for row in kept:
        copied = storage.read(storage.join(made, "preview", f"{row['clip_id']}.mp4"))
        assert copied == shards.read_member(made, index, row["clip_id"], "mp4")


def test_previews_that_are_no_longer_shown_are_removed(made: str, page: str) -> None:
    stale = storage.join(made, "preview", "0123456789abcdef.mp4")
    storage.put(stale, b"old")
    write_report(made)
    assert not storage.exists(stale)


def test_same_output_gives_the_same_page_wherever_it_lies(made: str, page: str, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "moved")
    assert storage.read(write_report(str(tmp_path / "moved"))).decode() == page


def test_page_asks_nothing_of_the_network(page: str) -> None:
    tags = _Text(page).tags
    addresses = [value or "" for _, attrs in tags for name, value in attrs.items() if name in ("src", "href")]
    assert all(address.startswith(("data:", "#", "preview/")) for address in addresses)
    assert "url(" not in page
    assert "@import" not in page


def test_a_hostile_file_name_stays_text(page: str) -> None:
    parsed = _Text(page)
    assert HOSTILE in parsed.sections["timelines"]
    assert HOSTILE in parsed.sections["sheet"]
    assert not any("onerror" in attrs for _, attrs in parsed.tags)
    assert not any(tag == "img" and attrs.get("src") == "x" for tag, attrs in parsed.tags)


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path: Path) -> None:
    sections = _Text(storage.read(write_report(str(tmp_path))).decode()).sections
    assert "0 sources" in sections["top"]
    assert "Output: no clips." in sections["top"]
    assert "No clip was cut" in sections["scores"]
    assert "No clip was kept." in sections["sheet"]
    assert "No unit has been committed." in sections["cost"]


def test_missing_sidecars_and_shards_leave_a_page_with_gaps(made: str, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "out")
    for folder in ("sidecar", "preview"):
        shutil.rmtree(tmp_path / "out" / folder, ignore_errors=True)
    (tmp_path / "out" / "shards" / "000000.tar").unlink()
    page = storage.read(write_report(str(tmp_path / "out"))).decode()
    sections = _Text(page).sections
    assert "not stored for this video" in sections["timelines"]
    assert "no picture stored" in sections["sheet"]
    assert "data-clip=" not in page


def test_clips_not_judged_yet_are_said_to_wait(made: str, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "out")
    for folder in ("clips/score", "clips/shard", "shards", "preview"):
        shutil.rmtree(tmp_path / "out" / folder, ignore_errors=True)
    funnel = _Text(storage.read(write_report(str(tmp_path / "out"))).decode()).sections["funnel"]
    assert "Clean and well lit 0 clips" in funnel
    assert "not processed by this step yet" in funnel


def _synthetic(out: str, videos: int, clips_each: int, kept: bool = True) -> None:
    """A ledger without footage: every third clip is dark, every seventh failed; the others are kept, or short."""
    schema = columns(CLIP, CLIP.names)
    for v in range(videos):
        unit, video_id = f"{v:016x}-0123456789abcdef-0of1", f"{v:016x}"
        rows = [_clip(v, i, kept, clips_each) for i in range(clips_each)]
        ledger.write_clips(out, "partition", unit, rows, schema, Record("partition", unit, cpu_s={"split_scenes": 2.5}))
        row = {"video_id": video_id, "uri": f"/films/{v:04d}.mp4", "status": "ok", "duration_s": 6.0 * clips_each}
        facts = {"fps": 30.0, "width": 640, "height": 360, "cuts_s": [float(t) for t in range(9, 6 * clips_each, 60)]}
        ledger.write_video(out, unit, {**row, **facts})
        thumbs = [{"clip_id": r["clip_id"], "times_s": [0.0] * 3, "jpegs": [JPEG + bytes(13_000)] * 3} for r in rows]
        ledger.write_sidecar(out, "thumbs", unit, thumbs, ledger.THUMBS)
        times = np.linspace(0, 6.0 * clips_each, 4000).tolist()
        curves = {"times_s": times, "motion_camera": times, "luma_times_s": times, "luma": times, "static_png": b""}
        ledger.write_sidecar(out, "signals", unit, [{"video_id": video_id, **curves}], ledger.SIGNALS)


def _clip(v: int, i: int, kept: bool, count: int) -> dict[str, object]:
    reject = f"too dark: mean luma {i % 16} < 16" if i % 3 == 0 else None if kept else "too short: 2.00 s < 3 s"
    error = f"encode_clip: ValueError: frame {i} (video.py:1)" if i % 7 == 0 else None
    names = ("forward", "turn_left", "look_up", "strafe_right")
    spans = [
        {"start_s": 6.0 * i + k, "peak_s": 6.0 * i + k, "end_s": 6.0 * i + k + 1, "kind": "regime", "name": name}
        for k, name in enumerate(names)
    ]
    spans.append({"start_s": 6.0 * i, "peak_s": 6.0 * i, "end_s": 6.0 * i + 1, "kind": "interaction", "name": "door"})
    return {
        "clip_id": f"{v * count + i:016x}",
        "video_id": f"{v:016x}",
        "source_uri": f"/films/{v:04d}.mp4",
        "index": i,
        "start_s": 6.0 * i,
        "end_s": 6.0 * i + 6,
        "width": 640,
        "height": 360,
        "motion_camera": float(i % 40),
        "motion_object": 1.0,
        "luma_mean": float(i % 256),
        "action_spans": spans,
        "reject": reject if not error else None,
        "error": error,
    }


def test_five_thousand_clips_give_a_page_under_fifteen_megabytes(tmp_path: Path) -> None:
    out = str(tmp_path)
    _synthetic(out, videos=50, clips_each=100)
    page = storage.read(write_report(out)).decode()
    assert len(page) < 15e6
    assert f"{MAX_SHEET_CLIPS} of 2,800 kept clips" in page
    assert page.count('class="card"') == MAX_SHEET_CLIPS
    assert f"{50 - MAX_TIMELINES} more videos not shown" in page
    assert page.count('class="r-interaction"') == MAX_TIMELINES + 1
    assert "encode_clip: ValueError" in page
    assert "Not measured for any clip: iqa, iqa_frozen, luma_min" in page


def test_nothing_kept_opens_the_videos_without_kept_clips(tmp_path: Path) -> None:
    _synthetic(str(tmp_path), videos=1, clips_each=2, kept=False)
    parsed = _Text(storage.read(write_report(str(tmp_path))).decode())
    assert "No clip was kept." in parsed.sections["sheet"]
    assert any(tag == "details" and "open" in attrs for tag, attrs in parsed.tags)


def test_one_clip_gives_a_page(tmp_path: Path) -> None:
    _synthetic(str(tmp_path), videos=1, clips_each=2)
    parsed = _Text(storage.read(write_report(str(tmp_path))).decode())
    assert "All 1 kept clip" in parsed.sections["sheet"]
    assert "1 kept clip not in a shard yet" in parsed.sections["top"]


def test_a_quarantined_source_is_listed_with_its_reason(tmp_path: Path) -> None:
    row = {
        "video_id": "f" * 16,
        "uri": "s3://b/<b>.mp4",
        "status": "quarantined",
        "reason": "killed its worker 2 times",
    }
    storage.put(storage.join(str(tmp_path), "videos", "x.parquet"), shards.to_parquet(conform([row], VIDEO)))
    removed = _Text(storage.read(write_report(str(tmp_path))).decode()).sections["removed"]
    assert "quarantined s3://b/<b>.mp4 killed its worker 2 times" in removed


@pytest.mark.parametrize(
    ("sizes", "most", "shown"),
    [([], 5, []), ([2, 9], 4, [2, 2]), ([1, 9], 4, [1, 3]), ([9, 9, 9], 2, [1, 0, 1]), ([3, 2], 60, [3, 2])],
)
def test_spread_is_fair_and_never_repeats(sizes: list[int], most: int, shown: list[int]) -> None:
    chosen = svg.sample_evenly(sizes, most)
    assert sum(map(len, chosen)) == sum(shown)
    assert sorted(map(len, chosen)) == sorted(shown)
    assert all(len(set(some)) == len(some) and all(0 <= i < n for i in some) for n, some in zip(sizes, chosen, strict=True))


def test_a_histogram_holds_every_clip_and_keeps_outliers_in_its_last_bin() -> None:
    figure = svg.histogram(np.array([*np.linspace(0, 1, 300), 900.0]), np.array([0.5]), "px", [("at most", 0.5)])
    counts = [int(n) for bin_ in figure.bins for n in re.findall(r"(\d+) (?:kept|dropped)", bin_.label)]
    assert sum(counts) == 302
    assert figure.high.endswith("+")
    assert 0 < figure.limits[0].percent < 100


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (5.44, "0:05.4"), (59.96, "1:00"), (3723, "1:02:03")])
def test_clock(seconds: float, text: str) -> None:
    assert svg.clock(seconds) == text


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_every_section_and_plays_a_clip(browser, made: str, page: str, width: int) -> None:
    complaints: list[str] = []
    tab = browser.new_page(viewport={"width": width, "height": 800})
    tab.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(Path(made, "report.html").as_uri())
    for section in ("top", "funnel", "removed", "scores", "timelines", "captions", "sheet", "cost", "recipe"):
        assert tab.locator(f"#{section}").is_visible(), section
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    tab.locator("a.card").first.click()
    assert tab.locator("dialog").is_visible()
    film = tab.locator("dialog video")
    if film.evaluate("film => film.canPlayType('video/mp4; codecs=\"avc1.42E01E\"')"):
        tab.wait_for_function("document.querySelector('dialog video').readyState >= 2")
    assert Path(made, film.get_attribute("src")).is_file()
    tab.keyboard.press("Escape")
    assert not tab.locator("dialog").is_visible()
    tab.close()
    assert complaints == []


@pytest.mark.parametrize("total_s", [0.3, 59.0, 7200.0, 200_000.0, 4e7])
def test_a_timeline_of_any_length_has_a_handful_of_ticks(total_s):
    marks = svg.ticks(total_s)
    assert 1 <= len(marks) <= 10
    assert marks[0].percent == 0
