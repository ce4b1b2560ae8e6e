"""Recordings with labels: the truth file, what is in view, what engines' logs mean, and takes by installed games."""

import itertools
import json
import random
import shutil
import struct

import numpy as np
import pytest

from curation.actions.learned import KINDS
from curation.errors import AttemptFailed, InputError
from curation.media.decode import Span, read_frames
from synth.doom.truth import interactions, read_truth
from synth.engines import label_set, minetest_scenes, neverball, openarena, openarena_scenes, recorder
from synth.engines.__main__ import main
from synth.engines.labels import LabelSpan, read_labels
from synth.engines.minetest_player import SCENARIOS, Player
from synth.engines.quake_map import QuakeMap, parse_map
from synth.engines.takes import Engine, Played, Take
from synth.engines.truth_file import EventSpan, FrameTruth, Optics, write_truth

OPTICS = Optics(320, 240, 160.0)  # 90 degrees across


def installed(*programs):
    missing = [name for name in programs if not shutil.which(name, path="/usr/games:/usr/local/bin:/usr/bin")]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}: make engines")


def written(folder, events, frames=30, pitch=0.0, hand=True, cuts=(), engine="minetest"):
    path = folder / "take.jsonl"
    frames = [FrameTruth((0.0, 0.0, 1.5), 0.0, pitch * number / 30) for number in range(frames)]
    write_truth(path, {"engine": engine}, OPTICS, 30, frames, events, cuts, hand)
    return path


def test_a_truth_file_reads_as_those_of_doom_do(tmp_path):
    path = written(tmp_path, [EventSpan("place", 5, 13), EventSpan("door", 20, 24, (3.0, 0.5, 1.0), 0.9)], cuts=[15])
    truth = read_truth(path)
    assert (truth.fps, len(truth)) == (30, 30)
    assert np.flatnonzero(interactions(truth)).tolist() == [*range(5, 13), *range(20, 24)]
    assert [event.name for event in truth.events] == ["place", "teleport", "door"]
    np.testing.assert_allclose(truth.position[0], [0, 0, 48])


@pytest.mark.parametrize(
    ("at_m", "radius_m", "in_view"),
    [
        ((4.0, 0.0, 1.5), 0.5, True),
        ((-4.0, 0.0, 1.5), 0.5, False),  # behind
        ((4.0, 4.3, 1.5), 0.5, True),  # its edge is still in the picture
        ((4.0, 5.5, 1.5), 0.5, False),
        ((4.0, 0.0, 8.0), 0.5, False),  # above
        ((40.0, 0.0, 1.5), 0.5, False),  # too small to be seen
        ((40.0, 0.0, 1.5), 3.0, True),  # an explosion is larger
        ((0.1, 0.1, 1.5), 1.0, True),  # around the player
    ],
)
def test_what_is_behind_beside_or_far_away_is_not_in_view(tmp_path, at_m, radius_m, in_view):
    path = written(tmp_path, [EventSpan("explosion", 5, 15, at_m, radius_m)])
    (span,) = json.loads(path.read_text().splitlines()[-1])["spans"]
    assert span["in_view"] is in_view
    assert read_labels(path).event.any() == in_view


def test_an_extent_is_a_share_of_the_pictures_width(tmp_path):
    path = written(tmp_path, [EventSpan("door", 0, 5, (4.0, 0.0, 1.5), 1.0)])
    (span,) = json.loads(path.read_text().splitlines()[-1])["spans"]
    assert span["extent"] == pytest.approx(2 * 1.0 * 160 / 4 / 320)
    assert span["distance_m"] == pytest.approx(4)


def test_what_a_hidden_hand_takes_changes_no_picture_and_what_it_places_does(tmp_path):
    labels = read_labels(written(tmp_path, [EventSpan("wield", 3, 9), EventSpan("place", 12, 20)], hand=False))
    assert labels.spans == (LabelSpan("place", 12, 20),)
    assert labels.kinds[12:20, KINDS.index("place")].all()
    assert not labels.event[:12].any()


@pytest.mark.parametrize("engine", ["minetest", "openarena", "painted"])
def test_another_tool_in_the_small_hand_of_who_is_seen_from_behind_is_neither(engine, tmp_path):
    path = tmp_path / "take.jsonl"
    header, frames = {"engine": engine, "third_person": True}, [FrameTruth((0.0, 0.0, 1.5), 0.0, 0.0)] * 30
    write_truth(path, header, OPTICS, 30, frames, [EventSpan("wield", 3, 9), EventSpan("dig", 12, 20)], (), True)
    labels = read_labels(path)
    large = engine == "painted"  # there the whole figure changes
    assert [span.kind for span in labels.spans] == ["wield"] * large + ["dig"]
    assert labels.known[3:9].all() == large


def test_a_view_that_tilts_looks_up(tmp_path):
    assert set(read_labels(written(tmp_path, [], pitch=40)).regimes) == {"look_up"}
    assert set(read_labels(written(tmp_path, [], pitch=-40)).regimes) == {"look_down"}
    assert set(read_labels(written(tmp_path, [], pitch=5)).regimes) == {"still"}


def test_openarena_does_not_tell_who_appears(tmp_path):
    labels = read_labels(written(tmp_path, [], engine="openarena"))
    assert [kind for kind, known in zip(KINDS, labels.knows_kind, strict=True) if not known] == ["appear"]


@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if name != "house"])
def test_each_scenario_plays_on_and_alike_from_equal_seeds(scenario):
    ready = {"ground": 10, "at": [0.0, 11.0, 0.0]}

    def played(seed):
        player = Player(random.Random(seed), ready)
        return [*itertools.islice(SCENARIOS[scenario](player), 900)]

    assert played(4) == played(4) != played(5)
    assert len({act.keys for act in played(4)}) > 1


def test_an_inventory_is_never_left_open():
    """Every press of its key is followed by another one before anything else is played."""
    player = Player(random.Random(8), {"ground": 10, "at": [0.0, 11.0, 0.0]})
    is_open, held = False, False
    for act in itertools.islice(SCENARIOS["mixed"](player), 6000):
        pressed = "inventory" in act.keys
        is_open ^= pressed and not held
        held = pressed
        assert not (is_open and act.keys - {"inventory"}), player.behaviour


def test_events_of_minetest_are_found_in_what_its_client_knew():
    def frame(events=(), keys=(), slot=1, in_menu=False):
        client = {"events": list(events), "keys": list(keys), "slot": slot, "item": "default:torch"}
        return minetest_scenes._Frame(client, "", (0.0, 0.0), in_menu)

    door = {"name": "changed", "pos": [3, 1, 5], "before": "doors:door_wood_a/1", "now": "doors:door_wood_c/2"}
    grass = {"name": "changed", "pos": [3, 1, 5], "before": "air", "now": "default:grass_1/0"}
    frames = [
        frame(),
        frame([door, grass]),
        frame(keys=["dig"]),
        frame(keys=["dig"]),
        frame(slot=2),
        frame(slot=2, in_menu=True),
    ]
    spans = {span.kind: span for span in minetest_scenes._events(frames)}
    assert {kind: span.start for kind, span in spans.items()} == {"door": 1, "dig": 2, "wield": 4, "menu": 5}
    assert spans["door"].at_m == (3, 5, 1), "east, north, up"


def minetest_frames(count, **events):
    """Frames of Minetest's client; events by `at<frame>`."""

    def frame(number):
        logged = [events[name] for name in (f"at{number}",) if name in events]
        client = {"events": logged, "keys": [], "slot": 1, "item": "", "in_liquid": 90 <= number < 95}
        return minetest_scenes._Frame(client, "", (0.0, 0.0), False)

    return [(span.kind, span.start, span.end) for span in minetest_scenes._events([frame(n) for n in range(count)])]


def test_what_smoulders_falls_or_walks_in_minetest_is_neither_event_nor_quiet():
    lit, blast = {"name": "place", "pos": [0, 1, 5]}, {"name": "explosion", "pos": [0, 1, 5], "radius": 3}
    assert minetest_frames(90, at10=lit, at40=blast) == [("place", 10, 18), ("explosion", 40, 76), ("other", 10, 136)]
    assert minetest_frames(90, at10=lit) == [("place", 10, 18), ("other", 10, 90)]
    assert minetest_frames(90, at5={"name": "appear", "pos": [0, 1, 5]}) == [("appear", 5, 20), ("other", 20, 155)]
    assert minetest_frames(100) == [("other", 90, 95)], "under water"


def test_weather_under_a_roof_is_no_event():
    assert minetest_frames(90, at5={"name": "weather", "open": False}) == [("other", 5, 95)]
    assert minetest_frames(90, at5={"name": "weather", "open": True}) == [("weather", 5, 35), ("other", 35, 95)]


@pytest.mark.parametrize(("level", "wet", "message"), [(5, False, "100% of the take is dark"), (90, True, "is under water")])
def test_a_take_in_which_nothing_can_be_seen_fails(level, wet, message, monkeypatch):
    picture = np.full((4, 4, 3), level, np.uint8)
    frame = FrameTruth((0.0, 0.0, 0.0), 0.0, 0.0, notes={"in_liquid": wet})

    def play_acts(take, look, acts, encode):
        encode(picture)
        return Played({}, OPTICS, [frame])

    monkeypatch.setattr(minetest_scenes, "play_acts", play_acts)
    with pytest.raises(AttemptFailed, match=message):
        minetest_scenes.play(Take("walk"), lambda picture: None)


def scene(eye=(0, 0, 50), entities=()):
    lines = ["noise", f"GAMECRAFT_REF 0 0 320 240 90.0 73.7 {eye[0]} {eye[1]} {eye[2]} 0 1 0 -1 0 0 0 0 1 1000"]
    lines += [f"GAMECRAFT_ENT 0 {flags} {model} {x} {y} {z}" for flags, model, (x, y, z) in entities]
    return openarena_scenes.read_scene(lines)


def test_the_renderers_lines_are_the_camera():
    drawn = scene(entities=[(4, "models/weapons2/shotgun/shotgun.md3", (1, 2, 3))])
    assert (drawn.yaw_deg, drawn.pitch_deg, drawn.fov_deg) == (90, 0, (90.0, 73.7))
    assert openarena_scenes.read_scene(["GAMECRAFT_REF 1 2", "noise"]) is None


def test_shots_weapons_lifts_and_new_lives_are_found_in_what_was_drawn():
    gun, other = "models/weapons2/shotgun/shotgun.md3", "models/weapons2/railgun/railgun.md3"
    flash = "models/weapons2/shotgun/shotgun_flash.md3"
    frames = []
    for number in range(90):
        own = [(4, gun if number < 60 else other, (0, 0, 0))] + ([(4, flash, (0, 0, 0))] if number in (20, 24) else [])
        lift = [(0, "*1", (0, 0, min(max(number - 40, 0), 10)))]
        eye = (0, 0, 50) if number < 80 else (900, 0, 50)
        frames.append(scene(eye, [*own, *lift]))
    jumps = openarena_scenes.jumps_of(frames)
    spans = {span.kind: span for span in openarena_scenes.event_spans(frames, jumps, Take("fight"), [(np.zeros(3), 60.0)] * 2)}
    assert jumps == [80]
    assert (spans["shot"].start, spans["shot"].end) == (20, 25 + openarena_scenes._FLASH_SHOWN)
    assert spans["wield"].start < 60 < spans["wield"].end
    assert (spans["door"].start, spans["door"].end) == (41, 51)
    hidden = [
        span.kind for span in openarena_scenes.event_spans(frames, jumps, Take("fight", hand=False), [(np.zeros(3), 60.0)] * 2)
    ]
    assert hidden == ["door"]


def test_a_fall_is_fast_and_no_jump():
    fall = [(0, 0, -2 * number**2) for number in range(40)]  # 150 units a frame at the end
    thrown = [(0, 0, -3042 + 90 * max(number, 0)) for number in range(-5, 20)]  # a launch pad begins with its full speed
    elsewhere = [(500, 0, -1332 + number) for number in range(10)]
    frames = [scene(eye, []) for eye in (*fall, *thrown, *elsewhere)]
    assert openarena_scenes.jumps_of(frames) == [65]


def test_a_shot_of_somebody_else_is_no_event_and_its_frames_are_not_known(tmp_path):
    flash, gun = "models/weapons2/shotgun/shotgun_flash.md3", "models/weapons2/shotgun/shotgun.md3"
    frames = [
        scene(entities=[(4, gun, (0, 0, 0)), *([(0, flash, (0, 200, 50))] if 10 <= number < 13 else [])])
        for number in range(30)
    ]
    spans = [*openarena_scenes.event_spans(frames, [], Take("fight"), [])]
    assert [(span.kind, span.start, span.details) for span in spans] == [("shot", 10, {"by_other": True})]
    ahead = [EventSpan("shot", 10, 18, (4.0, 0.0, 1.5), 0.6, {"by_other": True})]
    labels = read_labels(written(tmp_path, ahead, engine="openarena"))
    assert not labels.event.any()
    assert np.flatnonzero(~labels.known).tolist() == [*range(10, 18)]
    behind = [EventSpan("shot", 10, 18, (-4.0, 0.0, 1.5), 0.6, {"by_other": True})]
    assert read_labels(written(tmp_path, behind, engine="openarena")).known.all()


def test_what_is_drawn_in_mirrors_only_is_not_seen():
    assert not scene(entities=[(2, "models/players/sarge/head.md3", (0, 200, 50))]).entities


def wall_map(*walls):
    """A map of walls, each a box (low, high) in units."""
    axes = np.concatenate([np.eye(3), -np.eye(3)])
    offsets = [np.concatenate([np.array(high), -np.array(low)]) for low, high in walls]
    normals = np.tile(axes, (len(walls), 1)) if walls else np.zeros((0, 3))
    return QuakeMap(normals, np.concatenate([*offsets, []]), 6 * np.arange(len(walls)), [])


def test_a_wall_hides_what_is_behind_it_and_nothing_else():
    eye, wall = np.array([0.0, 0.0, 50.0]), wall_map(((-50, 90, 0), (50, 110, 100)))
    seen = {
        "behind": (0, 200, 50),
        "before": (0, 80, 50),
        "beside": (300, 200, 50),
        "above": (0, 120, 400),
        "back": (0, -200, 50),
    }
    assert [name for name, at in seen.items() if wall.hides(eye, np.array(at, float))] == ["behind"]
    assert not wall_map().hides(eye, np.array([0.0, 200.0, 50.0]))


def lumps(**parts):
    """A .bsp file of id Tech 3 with some of its lumps, by their numbers."""
    head, body = [b"IBSP", struct.pack("<i", 46)], b""
    for number in range(17):
        data = parts.get(f"lump{number}", b"")
        head.append(struct.pack("<2i", 8 + 17 * 8 + len(body), len(data)))
        body += data
    return b"".join(head) + body


def test_a_map_file_has_walls_glass_and_doors():
    planes = np.concatenate([np.eye(3), -np.eye(3)]), [50, 110, 100, 50, -90, 0]
    textures = [(b"wall", 0, 1), (b"glass", 0, 1 | 0x20000000), (b"water", 0, 32)]
    boxes = [(-9, -9, -9, 9, 9, 9), (0, 0, 0, 60, 0, 80)]

    def map_of(texture):
        return parse_map(
            lumps(
                lump1=b"".join(struct.pack("<64s2i", *one) for one in textures),
                lump2=np.column_stack(planes).astype("<f4").tobytes(),
                lump7=b"".join(struct.pack("<6f4i", *box, 0, 0, 0, 1 - number) for number, box in enumerate(boxes)),
                lump8=struct.pack("<3i", 0, 6, texture),
                lump9=np.column_stack([np.arange(6), np.zeros(6)]).astype("<i4").tobytes(),
            )
        )

    hidden = [map_of(texture).hides(np.array([0.0, 0, 50]), np.array([0.0, 200, 50])) for texture in range(3)]
    assert hidden == [True, False, False]
    middle, radius = map_of(0).movers[1]
    np.testing.assert_allclose(middle, [30, 0, 40])
    assert radius == pytest.approx(50)


def other_runs(scenes, quake_map=None, take=None, jumps=()):
    truths = [openarena._frame_truth(openarena._Frame(one, openarena._Act(), "")) for one in scenes]
    found = openarena_scenes.other_spans(scenes, jumps, take or Take("fight"), quake_map or wall_map(), truths, OPTICS)
    return [(span.kind, span.start, span.end) for span in found]


GUN = (4, "models/weapons2/shotgun/shotgun.md3", (0, 0, 50))


@pytest.mark.parametrize(
    "seen",
    [
        (0, "models/players/sarge/head.md3", (0, 300, 50)),
        (0, "models/ammo/rocket/rocket.md3", (0, 200, 50)),
        (0, "@sprites/plasma1", (0, 200, 50)),
        (0, "@bloodExplosion", (0, 200, 50)),
        (0, "@viewBloodBlend", (0, 1, 50)),
        (0, "models/weaphits/boom01.md3", (0, 300, 50)),
    ],
)
def test_what_is_seen_and_is_no_event_is_told_apart_from_quiet(seen):
    frames = [scene(entities=[GUN, seen] if 10 <= number < 20 else [GUN]) for number in range(30)]
    assert other_runs(frames) == [("other", 10, 20)]
    if "Blend" not in seen[1]:
        assert other_runs(frames, wall_map(((-500, 90, -500), (500, 110, 500)))) == [], "a wall hides it"
        away = (*seen[:2], (0, -300, 50))
        assert other_runs([scene(entities=[GUN, away])] * 5) == [], "it is behind the player"


def test_who_comes_to_life_shines_and_is_no_quiet_player():
    assert other_runs([scene(entities=[GUN])] * 60, jumps=[10]) == [("other", 10, 34)]


def test_who_lies_dead_or_takes_something_is_no_quiet_player():
    armour = (0, "models/powerups/armor/armor_yel.md3", (0, 60, 50))
    taken = [scene(entities=[GUN, armour] if number < 10 else [GUN]) for number in range(40)]
    assert other_runs(taken) == [("other", 10, 20)]
    far = (*armour[:2], (0, 400, 50))
    assert other_runs([scene(entities=[GUN, far] if number < 10 else [GUN]) for number in range(40)]) == []
    dead = [scene(entities=[GUN] if number < 10 else []) for number in range(40)]
    assert other_runs(dead) == [("other", 10, 40)]


def test_an_explosion_behind_a_wall_is_no_event():
    frames = [scene(entities=[GUN])] * 30
    blast = EventSpan("explosion", 5, 17, (0.0, 10.0, 1.5), 1.2)
    assert openarena_scenes.is_hidden(blast, frames, wall_map(((-500, 90, -500), (500, 110, 500))))
    assert not openarena_scenes.is_hidden(blast, frames, wall_map())
    shot = EventSpan("shot", 5, 9)  # in the hand
    assert not openarena_scenes.is_hidden(shot, frames, wall_map(((-500, 90, -500), (500, 110, 500))))


def test_what_has_no_kind_counts_as_neither_event_nor_quiet(tmp_path):
    labels = read_labels(written(tmp_path, [EventSpan("other", 5, 20), EventSpan("shot", 8, 12)], engine="openarena"))
    assert np.flatnonzero(labels.event).tolist() == [*range(8, 12)]
    assert np.flatnonzero(~labels.known).tolist() == [*range(5, 8), *range(12, 20)]
    assert [span.kind for span in labels.spans] == ["shot"]


def test_monsters_wounds_and_finds_in_doom_count_as_neither(tmp_path):
    def line(number):
        enemies = [{"name": "Zombie", "id": 1, "x": 0, "y": 0, "w": 30, "h": 40}] if 5 <= number < 8 else []
        enemies += [{"name": "Zombie", "id": 2, "x": 0, "y": 0, "w": 5, "h": 9}] if number == 10 else []
        events = [{"e": "hurt", "by": 3}] if number == 12 else ["pickup"] if number == 40 else []
        state = {f"CAMERA_POSITION_{axis}": 0.0 for axis in "XYZ"} | {"CAMERA_ANGLE": 0.0, "ATTACK_READY": 1.0}
        common = {"frame": number, "mode": "", "keys": [], "mouse_dx": 0.0, "state": state, "moving": []}
        return {**common, "enemies": enemies, "events": events}

    header = {"header": True, "fps": 35, "game": "ViZDoom", "width": 320, "height": 240}
    lines = [header, *(line(number) for number in range(60)), {"footer": True, "frames": 60, "true_cuts": []}]
    path = tmp_path / "doom.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    labels = read_labels(path)
    assert not labels.event.any()
    assert np.flatnonzero(~labels.known).tolist() == [*range(5, 8), *range(12, 24), *range(40, 52)]


def test_a_part_of_the_map_that_hardly_rests_is_no_event_and_a_door_is(tmp_path):
    near = (4.0, 0.0, 1.5)
    machine = [EventSpan("door", start, start + 5, near, 1.0, {"model": "*3"}) for start in (0, 7, 14)]
    door = EventSpan("door", 21, 26, near, 1.0, {"model": "*4"})
    labels = read_labels(written(tmp_path, [*machine, door], engine="openarena"))
    assert np.flatnonzero(labels.event).tolist() == [*range(21, 26)]
    assert np.flatnonzero(~labels.known).tolist() == [*range(5), *range(7, 12), *range(14, 19)]


def test_what_a_cut_changes_in_the_picture_is_not_known_to_be_an_event(tmp_path):
    labels = read_labels(written(tmp_path, [EventSpan("place", 20, 24)], cuts=[10, 21]))
    assert np.flatnonzero(~labels.known).tolist() == [*range(9, 16), *range(24, 27)]


def view(rotation, eye, ball=(1.0, 0.25, -1.0)):
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, -rotation @ np.array(eye)
    numbers = " ".join(map(str, matrix.T.ravel()))
    lines = [f"GAMECRAFT_VIEW 1.6 2.1 {numbers}", f"GAMECRAFT_FLOOR {' '.join(map(str, ball))} {numbers}", "noise"]
    return neverball.read_view(lines)


def test_neverballs_matrices_are_the_camera_relative_to_the_floor():
    level = view(np.eye(3), (1.0, 2.0, 3.0))
    np.testing.assert_allclose(level.eye, [1, -3, 2])
    np.testing.assert_allclose(level.angles_deg, [90, 0, 0], atol=1e-9)
    assert level.ball.tolist() == [1, 0.25, -1]
    down = np.radians(-20)
    tilted = np.array([[1, 0, 0], [0, np.cos(down), -np.sin(down)], [0, np.sin(down), np.cos(down)]]).T
    np.testing.assert_allclose(view(tilted, (0, 0, 0)).angles_deg, [90, -20, 0], atol=1e-9)
    left = np.radians(30)
    turned = np.array([[np.cos(left), 0, np.sin(left)], [0, 1, 0], [-np.sin(left), 0, np.cos(left)]]).T
    np.testing.assert_allclose(view(turned, (0, 0, 0)).angles_deg, [120, 0, 0], atol=1e-9)
    rolled = np.array([[np.cos(left), -np.sin(left), 0], [np.sin(left), np.cos(left), 0], [0, 0, 1]]).T
    np.testing.assert_allclose(np.abs(view(rolled, (0, 0, 0)).angles_deg), [90, 0, 30], atol=1e-9)
    assert neverball.read_view(["GAMECRAFT_VIEW 1 2", "noise"]) is None


@pytest.mark.parametrize("settings", [{}, {"third_person": True}, {"third_person": True, "hand": False, "hud": False}])
def test_neverball_refuses_what_it_cannot_show(settings):
    with pytest.raises(InputError, match="no hand"):
        neverball.play(Take("roll", **settings), lambda picture: None)


def test_test_maps_and_worlds_are_in_no_other_split():
    def places(engine, places_of):
        takes = dict(label_set.takes(engine))
        splits = ("train", "valid", "test")
        return {
            split: {place for name, take in takes.items() if split in name for place in places_of(take)} for split in splits
        }

    openarena_maps = places("openarena", lambda take: [take.place])
    assert openarena_maps["test"] <= set(label_set.TEST_MAPS)
    doom_maps = places("doom", lambda take: [place[:2] for place in take.maps])
    for maps in (openarena_maps, doom_maps):
        assert all(maps.values())
        assert len(maps["train"] | maps["valid"] | maps["test"]) == sum(map(len, maps.values()))
    assert len({take.seed for take in dict(label_set.takes("minetest")).values()}) == label_set.TAKES["minetest"]
    assert all("-test" in name for name in dict(label_set.takes("neverball")))
    assert {take.seconds for take in dict(label_set.takes("painted")).values()} == {label_set.PAINTED_SECONDS}


def test_a_set_that_is_cut_short_is_balanced():
    takes = [engine for engine, _, _ in label_set.all_takes()]
    assert {engine: takes.count(engine) for engine in label_set.TAKES} == label_set.TAKES
    trained = takes[: -label_set.TAKES["neverball"]]
    assert "neverball" not in trained
    half = trained[: len(trained) // 2]
    for engine in set(trained):
        assert abs(half.count(engine) - label_set.TAKES[engine] / 2) <= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--engine", "quake", "--scenario", "fight"],
            "unknown engine 'quake'; known: minetest, openarena, neverball, painted",
        ),
        (["--scenario", "fly"], "unknown scenario 'fly'; known: walk, jump, spin, build, house, events, inventory, mixed"),
        (["--scenario", "walk", "--size", "63x64"], "the size must be even and at least 64x64, not 63x64"),
        (["--scenario", "walk", "--seconds", "0"], "record at least two frames, not 0.0 s"),
        (["--scenario", "walk", "--crf", "60"], "crf must be between 0 and 51, not 60"),
    ],
)
def test_bad_arguments_are_one_line(words, message, capsys, tmp_path):
    assert main(["take", str(tmp_path / "out.mp4"), *words]) == 2
    assert capsys.readouterr().err == f"synth.engines: {message}\n"
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_a_take_that_fails(monkeypatch, tmp_path):
    def fail(take, encode):
        encode(np.zeros((240, 320, 3), np.uint8))
        raise InputError("as asked")

    monkeypatch.setattr(recorder, "engines", lambda: {"minetest": Engine(("walk",), 30, fail)})
    with pytest.raises(InputError, match="as asked"):
        recorder.record("minetest", tmp_path / "out.mp4", Take("walk"))
    assert not list(tmp_path.iterdir())


def drawn_number(picture):
    return sum(int(picture[234:238, 8 * bit + 2 : 8 * bit + 6].mean() > 127) << bit for bit in range(12))


@pytest.mark.exhaustive
@pytest.mark.slow
@installed("minetest", "Xvfb", "cc")
def test_minetest_pictures_have_the_number_of_their_own_line_and_show_what_is_placed(tmp_path):
    path = tmp_path / "build.mp4"
    words = ["--scenario", "build", "--seconds", "9", "--seed", "3", "--draw-number", "--no-hud", "--crf", "14"]
    assert main(["take", str(path), *words]) == 0
    rgb = read_frames(str(path), Span(0, 9)).rgb
    lines = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    logged = [int(line["tic"]) % 4096 for line in lines if "frame" in line]
    assert [drawn_number(picture) for picture in rgb] == logged
    placed = [span for span in read_labels(path.with_suffix(".jsonl")).spans if span.kind == "place"]
    assert placed
    changed = np.abs(np.diff(rgb[:, :200].astype(int), axis=0)).max(-1).mean((1, 2))
    for span in placed:
        assert changed[span.start - 1 : span.end].max() > 3 * np.median(changed), "the hand swings, and a block appears"


@pytest.mark.exhaustive
@pytest.mark.slow
@installed("openarena", "Xvfb", "cc")
def test_openarena_follows_a_bot_with_the_renderers_own_camera(tmp_path):
    path = tmp_path / "fight.mp4"
    assert main(["take", str(path), "--engine", "openarena", "--scenario", "fight", "--seconds", "6", "--place", "oa_dm4"]) == 0
    truth = read_truth(path.with_suffix(".jsonl"))
    assert len(truth) == 180
    assert np.ptp(truth.position[:, :2], axis=0).max() > 32, "the bot moves"
    assert len(read_frames(str(path), Span(0, 6)).rgb) == 180


@pytest.mark.exhaustive
@pytest.mark.slow
@installed("neverball", "Xvfb", "cc")
def test_neverballs_ball_rolls_where_the_keys_tilt_the_floor(tmp_path):
    path = tmp_path / "roll.mp4"
    words = ["--scenario", "roll", "--seconds", "6", "--place", "easy/easy", "--third-person", "--no-hand"]
    assert main(["take", str(path), "--engine", "neverball", *words]) == 0
    lines = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    frames = [line for line in lines if "frame" in line]
    assert len(frames) == len(read_frames(str(path), Span(0, 6)).rgb) == 180
    balls = np.array([line["ball"] for line in frames])
    assert np.ptp(balls[:, :2], axis=0).max() > 0.2
    assert max(line["state"]["CAMERA_PITCH"] for line in frames) < 10, "the camera looks down on the floor"
    assert not read_labels(path.with_suffix(".jsonl")).event.any()
