"""Measure the relate phase over 10,000 slim rows: how long it takes, and whether memory stays flat.

    python -m bench.relate [--encoder none] [--runner ray]
    python -m bench.relate --examples

It writes the ledger of 500 videos with 20 captioned clips each, all captions different, and runs the phase's units over it. The
second time the embeddings are in the cache. --examples prints instead what differences of embeddings say: for pairs of
captions, which other pair has the nearest difference, and which caption is nearest to `before + difference`.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Sequence

import numpy as np

from bench.machine import describe
from curation.captions import caption as captions
from curation.captions import interaction
from curation.captions.caption import ClipMeasurements, MeasuredEvent
from curation.captions.embeddings import EncoderSettings, load_encoder
from curation.schema import CLIP, Row, columns
from operators.captions import change_columns
from pipelines import ledger, phases, recipes, runners
from pipelines.ledger import Record
from pipelines.phases import Phase
from pipelines.recipes import Relate
from pipelines.units import Unit

VIDEOS, CLIPS, CLIP_S = 500, 20, 6.0
_NAMES = tuple(captions.MOTIONS)[1:]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the environment, then time and memory after some numbers of rows."""
    parser = argparse.ArgumentParser(prog="python -m bench.relate", description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="auto", choices=("auto", "none"), help="default auto")
    parser.add_argument("--runner", default="local", choices=runners.RUNNERS, help="default local, in this process")
    parser.add_argument("--examples", action="store_true", help="print the nearest differences and captions instead")
    options = parser.parse_args(arguments)
    if options.examples:
        print_examples()
        return
    print(describe())
    with tempfile.TemporaryDirectory() as out:
        recipe = recipes.Recipe(relate=Relate(EncoderSettings(options.encoder)))
        phase, units = Phase("relate", recipe, out), [_write_video(out, number) for number in range(VIDEOS)]
        if options.runner == "ray":
            runners.start_ray()
        _run_timed(phase, units, options.runner)
        print("again, with the embeddings of the first time:")
        _run_timed(phase, units, options.runner)


# Captions before and after each kind of change, at three places and in three wordings.
_CHANGES = {
    "snow": (
        ("A village street under a clear sky.", "A village street while snow falls thickly."),
        ("The player stands in a dry green forest.", "The player stands in a forest as flakes settle on the branches."),
        ("A bridge over a river in fine weather.", "A blizzard sweeps over the bridge."),
    ),
    "dark": (
        ("A village street in bright daylight.", "A village street at night, barely visible."),
        ("Sunlight falls through the trees of a forest.", "The forest has become dark."),
        ("The player crosses a bridge at noon.", "The player crosses a bridge under the stars."),
    ),
    "door": (
        ("A closed door at the end of a street.", "A door stands open at the end of a street."),
        ("The player faces the shut gate of a hut in the forest.", "The player looks into a hut through its open gate."),
        ("A locked iron door blocks the bridge.", "The iron door on the bridge has swung open."),
    ),
    "weapon": (
        ("The player walks along a street with empty hands.", "The player walks along a street with a sword in hand."),
        ("A forest, seen by a player who carries nothing.", "A rifle is raised in front of a forest."),
        ("The player is unarmed on the bridge.", "On the bridge, the player has drawn a knife."),
    ),
    "monster": (
        ("An empty village street.", "A demon walks down the village street."),
        ("A quiet forest without a living thing.", "A zombie comes out of the forest."),
        ("Nobody is on the bridge.", "A monster stands on the bridge."),
    ),
    "fire": (
        ("A wooden house in a village.", "A wooden house in a village is burning."),
        ("Trees of a forest.", "Flames climb the trees of a forest."),
        ("A wooden bridge over a river.", "The wooden bridge is on fire."),
    ),
}


def print_examples() -> None:
    """Print a row for each pair of captions, and how often the nearest difference means the same change.

    It is searched among the pairs at other places, which have other words. The nearest caption is searched among all captions
    except the one before.
    """
    encode = load_encoder(EncoderSettings("sentence-transformers"))
    assert encode is not None
    pairs = [(change, place) for change, places in _CHANGES.items() for place in range(len(places))]
    captions_ = [caption for places in _CHANGES.values() for ends in places for caption in ends]
    vectors = encode(captions_)
    before, after = vectors[::2], vectors[1::2]
    deltas = after - before
    units = deltas / np.linalg.norm(deltas, axis=1, keepdims=True)
    same, reached = 0, 0
    print("| before | after | norm | nearest difference (cosine) | nearest to before + that difference |")
    print("|---|---|---|---|---|")
    for number, (change, place) in enumerate(pairs):
        elsewhere = [other for other, (_, where) in enumerate(pairs) if where != place]
        nearest = max(elsewhere, key=lambda other: float(units[number] @ units[other]))
        aim = before[number] + deltas[nearest]
        candidates = [index for index in range(len(captions_)) if index != 2 * number]
        caption = min(candidates, key=lambda index: float(np.linalg.norm(aim - vectors[index])))
        same, reached = same + (pairs[nearest][0] == change), reached + (caption == 2 * number + 1)
        words = f"{pairs[nearest][0]} ({units[number] @ units[nearest]:.2f})"
        norm = float(np.linalg.norm(deltas[number]))
        print(f"| {captions_[2 * number]} | {captions_[2 * number + 1]} | {norm:.2f} | {words} | {captions_[caption]} |")
    print(f"\nnearest difference has the same change: {same} of {len(pairs)}; caption reached: {reached} of {len(pairs)}")


def _run_timed(phase: Phase, units: Sequence[Unit], runner: str) -> None:
    began, cpu_s, rows = time.monotonic(), time.process_time(), 0
    records = runners.run_ray(phase, units) if runner == "ray" else (phases.work(phase, unit) for unit in units)
    for number, record in enumerate(records, start=1):
        assert record.failure is None, record
        assert not record.errors, record
        rows += record.rows
        if number in (1, 10, VIDEOS // 4, VIDEOS // 2, VIDEOS):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            times = f"{time.monotonic() - began:6.1f} s, {time.process_time() - cpu_s:6.1f} CPU-s here"
            print(f"{rows:6} rows: {times}, peak {peak:.0f} MiB", flush=True)


def _write_video(out: str, number: int) -> Unit:
    """Write a video's rows as the earlier phases leave them, and return the unit."""
    name = f"{number:016x}-{'0' * 16}-0of1"
    rows = [_row(number, index) for index in range(CLIPS)]
    for phase in ("partition", "caption"):
        schema = columns(CLIP, {*rows[0], "unit_id", "reject", "error"})
        ledger.write_clips(out, phase, name, rows, schema, Record(phase, name))
    return Unit("relate", name, upstream=(f"partition/{name}", f"caption/{name}"))


def _row(number: int, index: int) -> Row:
    """Return a clip with two camera motions and one event. No two clips are alike."""
    first, second = (_NAMES[(number + index * step) % len(_NAMES)] for step in (1, 3))
    start_s, peak_s = index * CLIP_S, (number % 50) / 10
    event = MeasuredEvent(peak_s, peak_s + 0.1, peak_s + 0.7, 0.9)
    motions = ((first, 0.0, 2.0), (second, 2.0, 5.0))
    clip = ClipMeasurements(CLIP_S, motions, (event,), True, luma_mean=20.0 + number / 3, motion_camera=1 + index / 7)
    caption, change = captions.compose_caption(clip), interaction.measured_change_inside(clip)
    assert change is not None
    return {
        "clip_id": f"{number:x}-{index}",
        "video_id": f"{number:016x}",
        "source_uri": f"{number:016x}.mp4",
        "index": index,
        "scene_index": index // 7,
        "start_s": start_s,
        "end_s": start_s + CLIP_S,
        "action_detector": "learned",
        "luma_mean": clip.luma_mean,
        "caption_short": caption.short,
        "caption_long": caption.long,
        "caption_source": caption.source,
        "motion_camera": clip.motion_camera,
        "action_json": change_columns("action", change)["action_json"],
        "action_spans": _spans(clip, start_s),
    }


def _spans(clip: ClipMeasurements, start_s: float) -> list[Row]:
    regimes = [(start, start, end, 1.0, "regime", name) for name, start, end in clip.motions]
    events = [(*event[:4], "interaction", event.kind) for event in clip.events]
    fields = "start_s", "peak_s", "end_s", "energy", "kind", "name"
    shifted = [(a + start_s, b + start_s, c + start_s, *rest) for a, b, c, *rest in [*regimes, *events]]
    return [dict(zip(fields, span, strict=True)) for span in shifted]


if __name__ == "__main__":
    main()
