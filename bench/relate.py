"""Measure the relate phase over 10,000 slim rows: how long it takes, and whether memory stays flat.

    python -m bench.relate [--encoder none] [--runner ray]

It writes the ledger of 500 videos with 20 captioned clips each, all captions different, and runs the phase's units over it.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Sequence

from bench.machine import describe
from curation.captions import caption as captions
from curation.captions import interaction
from curation.captions.caption import ClipMeasurements, MeasuredEvent
from curation.captions.embeddings import EncoderSettings
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
    options = parser.parse_args(arguments)
    print(describe())
    with tempfile.TemporaryDirectory() as out:
        recipe = recipes.Recipe(relate=Relate(EncoderSettings(options.encoder)))
        phase, units = Phase("relate", recipe, out), [_write_video(out, number) for number in range(VIDEOS)]
        if options.runner == "ray":
            runners.start_ray()
        _run_timed(phase, units, options.runner)


def _run_timed(phase: Phase, units: Sequence[Unit], runner: str) -> None:
    began, cpu_s, rows = time.monotonic(), time.process_time(), 0
    records = runners.run_ray(phase, units) if runner == "ray" else (phases.work(phase, unit) for unit in units)
    for number, record in enumerate(records, start=1):
        assert record.failure is None, record.failure
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
    events = [(*event, "interaction", "event") for event in clip.events]
    fields = "start_s", "peak_s", "end_s", "energy", "kind", "name"
    shifted = [(a + start_s, b + start_s, c + start_s, *rest) for a, b, c, *rest in [*regimes, *events]]
    return [dict(zip(fields, span, strict=True)) for span in shifted]


if __name__ == "__main__":
    main()
