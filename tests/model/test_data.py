"""Shards to batches: the right frames, poses and texts, each sample once, resumed where it stopped."""

import io
import json
import shutil
from dataclasses import replace
from itertools import islice, pairwise

import av
import numpy as np
import pytest
from av.video.frame import PictureType

from curation import shards
from curation.cameras.camera import CameraSpan, to_npz
from model.data.captions import CaptionMix, caption, may_mirror, may_reverse
from model.data.decode import covering_crop, frames_at
from model.data.poses import chain_cameras, has_scale
from model.data.windows import StoredClip, Window, stored_clips, touching_runs, windows

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("diffusers", reason="the extra `train` is not installed")

import tiny_world  # noqa: E402

from model.control.pluecker import control_maps  # noqa: E402
from model.data.loader import Batches, DataSettings, DataSource, Windows, collate, read_sample  # noqa: E402
from model.data.order import Order, SourceSchedule, WindowSpan, samples_by_source, source_of  # noqa: E402
from model.training import flow_matching  # noqa: E402

SETTINGS = DataSettings(frames=5, fps=10.0, size=(48, 32), camera_dropout=0.0, captions=CaptionMix(dropout=0.0))


@pytest.fixture(scope="module")
def out(made, tmp_path_factory):
    """Two shards: four touching clips of one video of which the second lies in the other shard; a gap; another video."""
    folder = str(tmp_path_factory.mktemp("data"))
    ours = [made.clip("a", i, 30 * i, 30, scale=1 + i) for i in (0, 1, 2)]
    kept = [*ours[::2], made.clip("a", 4, 120, 30), made.clip("b", 0, 0, 20, status="suspect")]
    for name, samples in (("000000", kept), ("000001", [ours[1]])):
        shards.put_index(folder, name, shards.put_tar(folder, name, samples))
    return folder


@pytest.fixture
def data(out):
    return Windows([out], SETTINGS)


def numbers(video):
    """The number of each frame in its source, of a video [3, F, H, W]."""
    width = video.shape[3]
    left, right = (video[0, :, 16, column].float() for column in (width // 4, 3 * width // 4))
    return (((left - 20) / 14).round() * 16 + ((right - 20) / 14).round()).long().tolist()


def test_clips_that_touch_are_a_run_wherever_they_lie(out):
    chains = touching_runs(stored_clips([out]))
    assert [[c.clip_id for c in run] for run in chains] == [["a00", "a01", "a02"], ["a04"], ["b00"]]


def test_windows_stay_in_a_clip_where_they_can_and_join_clips_where_they_must(out):
    chains = touching_runs(stored_clips([out]))
    short = windows(chains, 5, 10.0)
    assert [(w.clips[0].clip_id, len(w.clips), round(w.start_s, 6)) for w in short] == [
        *((f"a{i:02d}", 1, s) for i in (0, 1, 2, 4) for s in (0.0, 0.5)),
        ("b00", 1, 0.0),
    ]
    long = windows(chains, 13, 10.0)
    assert [(len(w.clips), round(w.start_s, 6), round(w.slack_s, 6)) for w in long] == [(3, 0.0, 0.2), (3, 1.5, 0.2)]
    assert windows(chains, 45, 10.0) == []


def lengths(*seconds):
    """Touching clips of so many seconds."""
    edges = np.cumsum([0.0, *seconds])
    return tuple(StoredClip(f"c{i}", "v", i, a, b, "ok", ()) for i, (a, b) in enumerate(pairwise(edges)))


def spread(run, frames, fps=16.0):
    """Each window: its clips, where it begins."""
    return [([c.clip_id for c in w.clips], round(w.start_s, 3)) for w in windows([run], frames, fps)]


def test_a_short_clip_does_not_send_the_rest_of_its_run_across_joints():
    """81 frames at 16 fps are 5.06 s; in the middle of six-second clips lies one of four."""
    run = lengths(6, 6, 4, 6, 6)
    assert spread(run, 81) == [(["c0"], 0), (["c1"], 0), (["c3"], 0), (["c4"], 0)]
    assert spread(run, 45) == [(["c0"], 0), (["c0"], 3), (["c1"], 0), (["c1"], 3), (["c2"], 0)] + [
        ([f"c{i}"], s) for i in (3, 4) for s in (0, 3)
    ]
    assert spread(lengths(6, 3, 3, 6), 81) == [(["c0"], 0), (["c1", "c2"], 0), (["c3"], 0)], "short ones are joined"
    assert spread(lengths(4.5, 6), 81) == [(["c0", "c1"], 0), (["c0", "c1"], 5.25)], "where it makes one window more"
    assert spread(lengths(6, 4.5), 81) == [(["c0", "c1"], 0), (["c0", "c1"], 5.25)]
    assert [len(clips) for clips, _ in spread(lengths(6, 6, 6), 149)] == [3], "9.3 s, where all are too short"
    assert [len(spread(lengths(s), 81)) for s in (5.0, 81 / 16, 5.25)] == [0, 1, 1], "synthetic clips: before, animated, acted"


def test_frames_are_those_on_screen_at_the_ticks(data):
    sample = read_sample(data.windows[1], SETTINGS, epoch=0)
    assert numbers(sample["video"]) == [15, 18, 21, 24, 27]
    assert sample["video"].shape == (3, 5, 32, 48)
    assert sample["video"].dtype == torch.uint8


def test_poses_and_intrinsics_are_those_of_the_frames(data):
    sample = read_sample(data.windows[1], SETTINGS, epoch=0)
    torch.testing.assert_close(sample["pose"][:, 2, 3], 0.3 * torch.arange(5), atol=1e-5, rtol=0)
    assert torch.equal(sample["pose"][0], torch.eye(4))
    # 64x48 covers 48x32 as 48x36, and loses two rows above and below
    torch.testing.assert_close(sample["intrinsics"][0], torch.tensor([30.0, 30.0, 24.0, 16.0]))
    assert sample["camera_known"]


def test_rays_are_seen_from_an_origin_that_is_drawn_and_steps_are_not(data):
    far = replace(SETTINGS, max_origin_distance=30.0)
    origins = torch.stack([read_sample(window, far, epoch)["origin"] for window in data.windows for epoch in range(4)])
    way = origins[:, :3, 3].norm(dim=-1)
    assert 10 < float(way.max()) <= 30
    assert not origins[:, 1, 3].any(), "on the ground"
    torch.testing.assert_close(origins[:, :3, :3] @ origins[:, :3, :3].mT, torch.eye(3).expand(len(origins), 3, 3))
    sample = read_sample(data.windows[1], far, epoch=0)
    here = read_sample(data.windows[1], SETTINGS, epoch=0)
    assert torch.equal(here["origin"], torch.eye(4))
    assert torch.equal(here["video"], sample["video"])
    near, moved = (control_maps(s["pose"][None], s["intrinsics"][None], 32, 48, s["origin"][None]) for s in (here, sample))
    assert torch.equal(near[:, :, 6:], moved[:, :, 6:])
    assert not torch.allclose(near[:, :, :6], moved[:, :, :6])


def test_a_window_over_three_clips_walks_on_in_one_unit(out):
    settings = replace(SETTINGS, frames=25)
    (window,) = Windows([out], settings).windows
    sample = read_sample(window._replace(slack_s=0.0), settings, epoch=0)
    assert numbers(sample["video"]) == [3 * i for i in range(25)]
    torch.testing.assert_close(sample["pose"][:, 2, 3], 0.3 * torch.arange(25), atol=1e-4, rtol=0)
    assert sample["text"] == "a 1"  # the clip in its middle


def test_a_camera_that_is_not_believed_is_left_out(data):
    sample = read_sample(data.windows[-1], SETTINGS, epoch=0)
    assert sample["key"].startswith("b00")
    assert not sample["camera_known"]
    assert torch.equal(sample["pose"], torch.eye(4).expand(5, 4, 4))


def without_scale(made, index, **changes):
    """A clip whose camera walks, in an unknown unit."""
    camera = replace(made.walk(30), scale_source="none", **changes)
    clip = made.clip("a", index, 30 * index, 30)
    return replace(clip, members={**clip.members, "camera.npz": to_npz(camera)})


def test_a_clip_of_unknown_scale_trains_without_a_camera_not_as_one_that_stands_still(made, tmp_path):
    """What the model reads is what it reads of a clip that has no camera at all, in a window over two clips too."""
    known, lost = made.clip("b", 0, 0, 30), without_scale(made, 0)
    shards.put_index(str(tmp_path), "000000", shards.put_tar(str(tmp_path), "000000", [known, lost, without_scale(made, 1)]))
    samples = [
        read_sample(window, settings, epoch=0)
        for settings in (SETTINGS, replace(SETTINGS, frames=17))
        for window in Windows([str(tmp_path)], settings).windows
        if window.clips[0].video_id == "a"
    ]
    assert [len(sample["pose"]) for sample in samples] == [5, 5, 5, 5, 17]
    for sample in samples:
        assert not sample["camera_known"]
        assert torch.equal(sample["pose"], torch.eye(4).expand_as(sample["pose"]))
    batch = collate([{**samples[0], "source": "", "replaced": []}])
    encoded = flow_matching.encode_batch(batch, tiny_world.codec(), tiny_world.Waves(), torch.device("cpu"))
    assert not encoded.conditioning.maps.any(), "a camera that stands still has rays"


def test_a_scale_is_needed_by_cameras_that_move_from_their_place_only(made):
    walks, turns = made.walk(6), replace(made.walk(6), pose=np.tile(np.eye(4), (6, 1, 1)))
    assert has_scale(walks)
    assert has_scale(replace(turns, scale_source="none"))
    assert not has_scale(replace(walks, scale_source="none"))
    assert not any(has_scale(replace(walks, scale_to_unit=factor)) for factor in (0.0, np.nan, np.inf))
    assert chain_cameras([replace(turns, scale_source="none")], [np.arange(3) / 10]).known


def test_variable_rates_show_the_frame_on_screen(made):
    pictures, stamps = frames_at(made.mp4(4, every=0.25), np.array([0.0, 0.2, 0.3, 0.9, 2.0]), (64, 48))
    np.testing.assert_allclose(stamps, [0, 0, 0.25, 0.75, 0.75])
    assert numbers(torch.from_numpy(pictures).permute(3, 0, 1, 2)) == [0, 0, 1, 3, 3]


def test_frames_passed_over_on_the_way_change_nothing(made):
    """From every frame on, at even and uneven pace, with frames that no other is made from (half of them)."""
    for every in (1 / 30, 0.4):
        clip = made.mp4(40, every=every, crf="1", **{"x264-params": "bframes=3:b-adapt=0:scenecut=0"})
        with av.open(io.BytesIO(clip)) as container:
            kinds = [frame.pict_type for frame in container.decode(video=0)]
        assert kinds.count(PictureType.B) > 15
        for first in range(40):
            times_s = (first + np.array([0.5, 1.5, 2.5])) * every
            pictures, stamps = frames_at(clip, times_s, (64, 48))
            expected = np.minimum(first + np.arange(3), 39)
            np.testing.assert_allclose(stamps, expected * every, atol=1e-4)
            assert numbers(torch.from_numpy(pictures).permute(3, 0, 1, 2)) == expected.tolist()


@pytest.mark.parametrize(
    ("stored", "size"), [((864, 480), (832, 480)), ((480, 864), (832, 480)), ((640, 403), (640, 400)), ((64, 48), (64, 48))]
)
def test_a_crop_covers_the_size(stored, size):
    crop = covering_crop(stored, size)
    assert crop.width >= size[0]
    assert crop.height >= size[1]
    assert (crop.width == size[0]) or (crop.height == size[1])
    centre = crop.intrinsics(np.array([100.0, 100.0, stored[0] / 2, stored[1] / 2]), stored)[2:]
    np.testing.assert_allclose(centre, np.array(size) / 2, atol=1)


def test_an_epoch_over_three_ranks_and_two_workers_has_every_sample_once(data):
    ranks = [list(islice(Batches(data, 1, rank, 3, workers=2), 3)) for rank in range(3)]
    keys = [key for found in ranks for batch in found for key in batch["key"]]
    assert sorted(keys) == sorted(window.key for window in data.windows)
    assert len(keys) == 9


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumes_where_it_stopped_and_makes_the_same_samples(data, workers):
    whole = list(islice(Batches(data, 2, workers=workers), 8))  # into the second epoch
    first = Batches(data, 2, workers=workers)
    before = list(islice(first, 3))
    after = list(islice(Batches(data, 2, workers=workers, position=first.position), 5))
    assert [b["key"] for b in before + after] == [b["key"] for b in whole]
    for a, b in zip(before + after, whole, strict=True):
        assert torch.equal(a["video"], b["video"])
        assert a["text"] == b["text"]


TEN = [SourceSchedule(1.0, (WindowSpan(0, 0, 10),))]


def test_a_run_with_other_ranks_sees_exactly_what_is_left():
    one = list(islice(Order(TEN, 0), 10))
    two = [list(islice(Order(TEN, 0, rank, 2), 2)) for rank in range(2)]
    rest = list(islice(Order(TEN, 0, position=4), 6))
    assert sorted(two[0] + two[1] + rest) == sorted(one) == [(0, number) for number in range(10)]


MIXED = [
    SourceSchedule(0.7, (WindowSpan(0, 0, 30),)),
    SourceSchedule(0.2, (WindowSpan(0, 30, 7),)),
    SourceSchedule(0.1, (WindowSpan(0, 37, 200),)),
]


def test_sources_are_drawn_by_their_shares_and_each_window_once_an_epoch_of_its_source():
    drawn = list(islice(Order(MIXED, 0), 5000))
    which = np.array([source_of(MIXED, number)[0] for _, number in drawn])
    for source, share in enumerate((0.7, 0.2, 0.1)):
        for first in range(0, 5000, 1000):
            assert abs((which[first : first + 1000] == source).sum() - 1000 * share) <= 1
        mine = [item for item, source_ in zip(drawn, which, strict=True) if source_ == source]
        (span,) = MIXED[source].spans
        for epoch in range(len(mine) // span.length):
            passed = mine[epoch * span.length : (epoch + 1) * span.length]
            assert sorted(passed) == [(epoch, span.start + i) for i in range(span.length)]
    assert all(0 < (which[rank::2] == 0).mean() < 1 for rank in range(2)), "every rank sees every source"
    switches = (np.diff(which) != 0).mean()
    assert switches == pytest.approx(1 - 0.7**2 - 0.2**2 - 0.1**2, abs=0.05), "drawn, not in turn"


@pytest.mark.parametrize("position", [0, 1, 999, 1000, 1234, 3001])
def test_a_mix_resumes_at_any_position(position):
    whole = list(islice(Order(MIXED, 3), 3500))
    assert list(islice(Order(MIXED, 3, position=position), 400)) == whole[position : position + 400]
    counts = np.bincount([source_of(MIXED, number)[0] for _, number in whole[:position]], minlength=3)
    assert samples_by_source(position, [0.7, 0.2, 0.1], 3) == counts.tolist()
    halves = [list(islice(Order(MIXED, 3, rank, 2, position), 100)) for rank in range(2)]
    assert [item for pair in zip(*halves, strict=True) for item in pair] == whole[position : position + 200]


def put(folder, name, samples):
    shards.put_index(str(folder), name, shards.put_tar(str(folder), name, samples))


def test_new_shards_enter_at_the_next_epoch_and_lost_ones_are_refused(made, tmp_path):
    put(tmp_path, "000000", [made.clip("a", i, 30 * i, 30) for i in range(3)])
    first = Windows([str(tmp_path)], SETTINGS)
    assert len(first) == 6
    before = list(islice(Order(first.schedules, 0), 8))  # two into the second epoch
    put(tmp_path, "000001", [made.clip("b", 0, 0, 30)])
    grown = Windows([str(tmp_path)], SETTINGS, first.listings, position=8)
    assert [item[0] for item in grown.listings[0]] == [0, 2]
    rest = list(islice(Order(grown.schedules, 0, position=8), 4 + 8))
    key = {epoch: sorted(grown.windows[n].key for e, n in before + rest if e == epoch) for epoch in range(3)}
    assert key[1] == key[0] == sorted(window.key for window in first.windows), "the epoch that had begun is as it was"
    assert key[2] == sorted([*key[0], "b00@0.000", "b00@0.500"])
    again = Windows([str(tmp_path)], SETTINGS, json.loads(json.dumps(grown.listings)), position=10)
    assert list(islice(Order(again.schedules, 0, position=10), 10)) == rest[2:]
    put(tmp_path, "000002", [made.clip("c", 0, 0, 30)])
    later = Windows([str(tmp_path)], SETTINGS, grown.listings, position=9)
    assert [(epoch, len(held)) for epoch, held in later.listings[0]] == [(0, 1), (2, 3)], "both enter at the same epoch"
    (tmp_path / "shards" / "000000.parquet").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 shards .* are gone or changed, the first .*/shards/000000; bring them back"):
        Windows([str(tmp_path)], SETTINGS, grown.listings, position=8)


def test_a_source_that_is_replaced_by_another_of_the_same_name_is_refused(made, tmp_path):
    put(tmp_path / "one", "000000", [made.clip("a", 0, 0, 30)])
    put(tmp_path / "two", "000000", [made.clip("b", 0, 0, 30)])
    pinned = Windows([str(tmp_path / "one")], SETTINGS).listings
    moved = shutil.copytree(tmp_path / "one", tmp_path / "moved")
    assert Windows([str(moved)], SETTINGS, pinned, position=1).counts == {str(moved): 2}, "the same bytes elsewhere"
    with pytest.raises(ValueError, match="1 of 1 shards that this run is trained on are gone or changed"):
        Windows([str(tmp_path / "two")], SETTINGS, pinned, position=1)


def test_sources_and_shares_are_said_once_and_add_up(made, tmp_path):
    put(tmp_path / "one", "000000", [made.clip("a", 0, 0, 30)])
    put(tmp_path / "two", "000000", [made.clip("b", 0, 0, 30)])
    sources = DataSource(str(tmp_path / "one"), 0.25), DataSource(str(tmp_path / "two"), 0.75)
    mixed = Windows([], replace(SETTINGS, sources=sources))
    batches = list(islice(Batches(mixed, 4, workers=0), 10))
    assert sum(name == sources[1].uri for batch in batches for name in batch["source"]) == pytest.approx(30, abs=6)
    for batch in batches:
        for name, key in zip(batch["source"], batch["key"], strict=True):
            assert (name == sources[0].uri) == key.startswith("a")
    with pytest.raises(ValueError, match=r"shares of sources must add up to 1, not 1\.25"):
        replace(SETTINGS, sources=(sources[1], DataSource("x", 0.5)))
    with pytest.raises(ValueError, match="share of x must be over 0 and at most 1, not 0"):
        DataSource("x", 0.0)
    with pytest.raises(ValueError, match="both name outputs; name them in one place"):
        Windows([str(tmp_path / "one")], replace(SETTINGS, sources=sources))
    with pytest.raises(ValueError, match="neither names an output"):
        Windows([], SETTINGS)


def test_a_damaged_clip_is_replaced_by_one_of_its_source(made, tmp_path):
    broken = made.clip("a", 0, 0, 20)
    put(tmp_path / "one", "000000", [replace(broken, members={**broken.members, "mp4": b"no video"}), made.clip("c", 0, 0, 20)])
    put(tmp_path / "two", "000000", [made.clip("b", i, 30 * i, 30) for i in range(4)])
    mixed = Windows(
        [], replace(SETTINGS, sources=(DataSource(str(tmp_path / "one"), 0.5), DataSource(str(tmp_path / "two"), 0.5)))
    )
    sample = mixed[0, 0]
    assert (sample["key"], sample["source"]) == ("c00@0.000", str(tmp_path / "one"))
    assert all(words.startswith("a00@0.000: ") for words in sample["replaced"])


def test_the_second_epoch_is_another_order(data):
    order = list(islice(Order(data.schedules, 0), 2 * len(data)))
    first, second = order[: len(data)], order[len(data) :]
    assert {e for e, _ in first} == {0}
    assert sorted(i for _, i in first) == sorted(i for _, i in second)
    assert [i for _, i in first] != [i for _, i in second]


def test_a_damaged_clip_is_replaced_and_named(out, tmp_path):
    copy = shutil.copytree(out, tmp_path / "o")
    index = shards.read_index(str(copy), "000001").to_pylist()
    place = next(row for row in index if row["member"].endswith(".mp4"))
    tar = copy / "shards" / "000001.tar"
    data = bytearray(tar.read_bytes())
    data[place["offset"] : place["offset"] + place["size"]] = bytes(place["size"])
    tar.write_bytes(data)
    found = list(islice(Batches(Windows([str(copy)], SETTINGS), 1, workers=0), 9))
    lost = [words for batch in found for words in batch["replaced"]]
    assert {words.partition(":")[0] for words in lost} == {"a01@0.000", "a01@0.500"}
    assert all("cannot be decoded" in words for words in lost)
    assert all(len(batch["key"]) == 1 for batch in found)


def test_shards_that_are_gone_stop_the_run(out, tmp_path):
    copy = shutil.copytree(out, tmp_path / "o")
    data = Windows([str(copy)], SETTINGS)
    for tar in (copy / "shards").glob("*.tar"):
        tar.unlink()
    with pytest.raises(RuntimeError, match=r"16 samples in a row cannot be read.*are the shards still there"):
        data[0, 0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"frames": 44}, r"1 \+ 4k"),
        ({"size": (850, 480)}, "multiple of 16"),
        ({"frames": 401}, "is 40.1 s long; use fewer"),
    ],
)
def test_impossible_settings_are_refused(out, settings, words):
    with pytest.raises(ValueError, match=words):
        Windows([out], replace(SETTINGS, **settings))


def test_an_output_without_shards_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no committed shard in"):
        Windows([str(tmp_path)], SETTINGS)


META = {"caption_short": "a hall", "caption_long": "a long dark hall", "interaction_caption": "a door opens"}


def texts(mix, meta=META, count=2000):
    rng = np.random.default_rng(0)
    return [caption(meta, mix, *rng.random(2)) for _ in range(count)]


def test_captions_are_mixed_as_set():
    found = texts(CaptionMix(long_share=0.25, dropout=0.1))
    share = {text: found.count(text) / len(found) for text in set(found)}
    assert share == {
        "": pytest.approx(0.1, abs=0.02),
        "a long dark hall a door opens": pytest.approx(0.9 * 0.25, abs=0.03),
        "a hall a door opens": pytest.approx(0.9 * 0.75, abs=0.03),
    }


def test_a_missing_caption_is_replaced_by_the_other_and_by_nothing():
    only = CaptionMix(long_share=1.0, dropout=0.0)
    assert set(texts(only, {"caption_short": "a hall"}, 5)) == {"a hall"}
    assert set(texts(only, {"interaction_caption": "a door opens"}, 5)) == {"a door opens"}
    assert set(texts(only, {}, 5)) == {""}
    assert set(texts(replace(only, with_interaction=False), META, 5)) == {"a long dark hall"}


@pytest.mark.parametrize(
    ("text", "mirror", "reverse"),
    [
        ("", True, True),
        ("A dark hall with brick walls under bright lamps.", True, True),
        ("Brightly lit; a copyright notice is not a side, nor is a cleft.", True, True),
        ("A door on the LEFT-hand side.", False, False),
        ("The rightmost of three lamps.", False, False),
        ("A lamp in the upper-left corner.", False, False),
        ("A wheel that spins counter-clockwise.", False, False),
        ("画面左侧有一扇门", False, False),
        ("The camera moves forward.", True, False),
        ("The camera turns around.", True, False),
        ("The camera hardly moves.", True, False),
        ("Fog lies in the hall until the lamps are lit.", True, False),
        ("First it is dim.", True, False),
        ("A hall. The door opens.", True, False),
    ],
)
def test_text_forbids_what_would_make_it_untrue(text, mirror, reverse):
    assert (may_mirror(text, [{}]), may_reverse(text, [{}])) == (mirror, reverse)


def test_what_is_written_is_not_mirrored_and_what_happens_is_not_reversed_even_without_text():
    assert not may_mirror("", [{}, {"caption_long": "A sign reads EXIT."}])
    assert may_mirror("", [{"caption_long": "A door on the left."}]), "a text that is not given forbids nothing by its sides"
    for meta in ({"interactive": True}, {"interaction_caption": "The lamp glows."}):
        assert not may_reverse("", [{}, meta])
    assert may_reverse("", [{"interactive": False, "interaction_caption": None}])


@pytest.mark.parametrize(
    ("meta", "mirrored", "backwards"),
    [
        ({"caption_short": "a hall"}, True, True),
        ({"caption_short": "a door on the left"}, False, False),
        ({"caption_short": "a hall", "interaction_caption": "It glows."}, True, False),
        ({"caption_short": "the camera moves forward"}, True, False),
    ],
)
def test_the_loader_mirrors_and_reverses_only_what_no_text_forbids(made, tmp_path, meta, mirrored, backwards):
    put(tmp_path, "000000", [made.clip("a", 0, 0, 20, **meta)])
    plain = read_sample(Windows([str(tmp_path)], SETTINGS).windows[0], SETTINGS, epoch=0)
    settings = replace(SETTINGS, mirror_share=1.0, reverse_share=1.0)
    changed = read_sample(Windows([str(tmp_path)], settings).windows[0], settings, epoch=0)
    assert changed["text"] == plain["text"]
    expected = plain["video"].flip(3) if mirrored else plain["video"]
    assert torch.equal(changed["video"], expected.flip(1) if backwards else expected)
    assert float(changed["pose"][-1, 2, 3]) == pytest.approx(-1.2 if backwards else 1.2, abs=1e-4)


def in_part(made, index, *spans, **changes):
    """A clip of 60 frames with a camera in these frames [start, end) only."""
    parts = tuple(CameraSpan(a, b, "general", k, 1.0, source) for k, (a, b, source) in enumerate(spans))
    stored = [{"start_s": a / 30, "end_s": (b - 1) / 30, "model": "general", "scale_source": source} for a, b, source in spans]
    clip = made.clip("a", index, 60 * index, 60, status="ok_part", camera_spans=stored, **changes)
    return replace(clip, members={**clip.members, "camera.npz": to_npz(replace(made.walk(60), spans=parts))})


def test_windows_are_drawn_inside_camera_spans_and_others_fill_the_rest(made, tmp_path):
    clips = [in_part(made, 0, (9, 34, "speed"), (40, 50, "none")), made.clip("a", 1, 60, 30, status="suspect")]
    shards.put_index(str(tmp_path), "000000", shards.put_tar(str(tmp_path), "000000", clips))
    data = Windows([str(tmp_path)], SETTINGS)
    known = {window.key: read_sample(window, SETTINGS, epoch)["camera_known"] for window in data.windows for epoch in range(3)}
    # 2 s at 10 frames a second: the span of 25 frames at 30 holds one window of half a second, what follows it one or two.
    first = next(window for window in data.windows if known[window.key])
    assert first.start_s == pytest.approx(9 / 30)
    assert first.start_s + first.slack_s + 4 / SETTINGS.fps <= 33 / 30 + 1e-6
    assert sum(known.values()) == 1
    spans = sorted((window.clips[0].clip_id, window.start_s, window.start_s + 0.5 + window.slack_s) for window in data.windows)
    assert all(a[0] != b[0] or a[2] <= b[1] + 1e-6 for a, b in pairwise(spans))


def test_without_ok_part_among_the_statuses_windows_are_drawn_as_ever(made, tmp_path):
    clips = [in_part(made, 0, (9, 34, "speed"))]
    shards.put_index(str(tmp_path), "000000", shards.put_tar(str(tmp_path), "000000", clips))
    settings = replace(SETTINGS, cameras=("ok",))
    data = Windows([str(tmp_path)], settings)
    assert [round(window.start_s, 3) for window in data.windows] == [0.0, 0.5, 1.0, 1.5]
    assert not any(read_sample(window, settings, 0)["camera_known"] for window in data.windows)


def test_a_window_over_two_spans_or_out_of_one_has_no_camera(made, tmp_path):
    clips = [in_part(made, 0, (0, 30, "speed"), (30, 60, "speed")), in_part(made, 1, (0, 60, "speed"))]
    shards.put_index(str(tmp_path), "000000", shards.put_tar(str(tmp_path), "000000", clips))
    first, second = (clip for clip in stored_clips([str(tmp_path)]))
    cases = {((first,), 0.2): True, ((first,), 0.8): False, ((first, second), 1.8): True, ((second,), 1.0): True}
    for (parts, start_s), known in cases.items():
        assert read_sample(Window(parts, start_s, 0.0), SETTINGS, 0)["camera_known"] == known


def test_a_span_that_ends_before_its_clip_does_is_not_chained_to_the_next_clip(made, tmp_path):
    clips = [in_part(made, 0, (0, 59, "speed")), in_part(made, 1, (0, 60, "speed"))]
    shards.put_index(str(tmp_path), "000000", shards.put_tar(str(tmp_path), "000000", clips))
    window = Window(tuple(stored_clips([str(tmp_path)])), 1.75, 0.0)
    assert not read_sample(window, SETTINGS, 0)["camera_known"]


def test_an_index_without_spans_is_read(out, tmp_path):
    shutil.copytree(out, tmp_path / "old")
    for name in ("000000", "000001"):
        index = shards.read_index(str(tmp_path / "old"), name).drop_columns(["camera_spans"])
        (tmp_path / "old" / "shards" / f"{name}.parquet").write_bytes(shards.to_parquet(index))
    assert stored_clips([str(tmp_path / "old")])[0].camera_spans == ()
    assert Windows([str(tmp_path / "old")], SETTINGS).counts
