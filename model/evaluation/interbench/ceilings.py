"""The ceilings of InterBench: what a judge says of real videos, of videos coded once more, and of a first frame repeated.

A judge sees in a still picture no interaction; where it does, its scores mean little. Coding should change nothing.
"""

from collections.abc import Sequence
from dataclasses import replace

from curation import storage
from curation.errors import UnreadableVideo
from model.evaluation import ceilings
from model.evaluation.cases import Case
from model.evaluation.videos import read_video


def cases_of(cases: Sequence[Case], count: int, out: str) -> dict[str, list[Case]]:
    """Return the cases of each ceiling by its label, `count` of each subset, and write their videos to OUT/ceilings.

    The videos are the real ones of the cases that have `real`, and else the model's own. What exists is not written again. A
    video that cannot be read has no ceilings.
    """
    made: dict[str, list[Case]] = {}
    seen: dict[str, int] = {}
    for case in cases:
        seen[case.subset] = seen.get(case.subset, 0) + 1
        if seen[case.subset] > count:
            continue
        whose, source = ("real", case.real) if case.real else ("the model's", case.video)
        if case.real:
            made.setdefault("real", []).append(replace(case, video=case.real))
        for kind, label in (("coded", f"{whose}, coded again"), ("frozen", f"{whose}, first frame repeated")):
            uri = storage.join(out, "ceilings", kind, f"{case.name}.mp4")
            if _write(source, kind, uri):
                made.setdefault(label, []).append(replace(case, video=uri))
    return made


def _write(source: str, kind: str, uri: str) -> bool:
    """Write a changed copy of a video, unless it is there, and return whether there is one."""
    if storage.exists(uri):
        return True
    try:
        video = read_video(source)
    except (UnreadableVideo, ValueError):
        return False
    storage.put(uri, ceilings.to_h264(video if kind == "coded" else ceilings.variant(video, kind)))
    return True
