"""The judge of InterBench: a vision-language model that scores a video in six dimensions, with evidence.

A reply that does not fit the schema is invalid; it is never a score of 0. Each video is asked about k times, each time with
frames at other moments, so that the agreement of the repeats says something even where a model has no randomness.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import numpy as np

from curation import storage
from curation.media.decode import Span
from curation.media.source import probe
from curation.media.viewport import Rect
from curation.schema import digest
from curation.vlm import Prompt, Reply, Vlm, VlmSettings, ask, question_files
from curation.vlm.frames import grab_frames
from curation.vlm.parsing import parse_answer
from model.evaluation.cases import Case
from model.evaluation.interbench import suite
from model.evaluation.interbench.scores import DIMENSIONS, SCALE, apply_trigger
from model.evaluation.videos import duration_s

_RUBRIC = "model.evaluation.interbench:rubric"
_EVIDENCE_CHARS = 160


@dataclass(frozen=True)
class JudgeSettings:
    """Which model judges, and what it is shown."""

    vlm: VlmSettings = field(default_factory=VlmSettings)
    frames: int = 16  # frames of a video; the first and the last are always among them
    width_px: int = 448  # maximum width of a frame
    repeats: int = 1  # how often each video is judged, each time with frames at other moments

    def __post_init__(self) -> None:
        if not 2 <= self.frames <= 64:
            raise ValueError(f"frames must be 2 to 64, not {self.frames}")
        if not 1 <= self.repeats <= 32:
            raise ValueError(f"repeats must be 1 to 32, not {self.repeats}")
        if self.width_px < 56:
            raise ValueError(f"width_px must be at least 56, not {self.width_px}")


def rubric() -> dict[str, Any]:
    """Return rubric.yaml."""
    return question_files.load(_RUBRIC)


@cache
def rubric_hash() -> str:
    """Return a digest of the rubric, the test set and the schema of a reply: judgements with another one are not comparable."""
    return digest(json.dumps([rubric(), suite.data(), reply_schema()], sort_keys=True))


def reply_schema() -> dict[str, Any]:
    """Return the schema of a reply: for each dimension first the evidence, then the score."""

    def part(values: Sequence[int]) -> dict[str, Any]:
        fields = {"evidence": {"type": "string", "maxLength": _EVIDENCE_CHARS}, "score": {"enum": list(values)}}
        return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}

    fields = {name: part((0, 1) if name == "trigger" else SCALE) for name in DIMENSIONS}
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def question(
    subset: suite.Subset, base_prompt: str, interaction: str, frames: Sequence[bytes], labels: Sequence[str], repeat: int = 0
) -> Prompt:
    """Return the question about a video. interaction: empty takes the subset's own interaction prompt."""
    data, interaction = rubric(), interaction or subset.interaction
    dimensions = "\n\n".join(
        f"{name}: {part['meaning']}\n" + "\n".join(f"  {level}: {text}" for level, text in part["levels"].items())
        for name, part in data["dimensions"].items()
    )
    text = question_files.render(
        _RUBRIC,
        count=str(len(frames)),
        prompt=_plain(suite.full_prompt(base_prompt, interaction)),
        interaction=_plain(interaction),
        trigger=subset.trigger,
        scope=data["scopes"][subset.scope],
        end=data["ends"][subset.end],
        end_state=subset.end_state,
        dimensions=dimensions,
    )
    text = f"(rubric {rubric_hash()}) {text}"
    return Prompt(f"interbench {repeat}", text, reply_schema(), tuple(frames), tuple(labels))


def _plain(text: str) -> str:
    """Return a user's text without what would end the quotation in the question."""
    return " ".join(text.replace('"', "'").split())


def shown_times(duration_s: float, frames: int, repeat: int, repeats: int) -> tuple[float, ...]:
    """Return the times of the frames that are shown: both ends, and evenly between them, moved a little per repeat."""
    last_s = max(0.0, duration_s - 1e-3)
    step = last_s / (frames - 1)
    moved = np.arange(1, frames - 1) * step + step * (repeat / repeats - 0.5 * (repeats - 1) / repeats)
    return (0.0, *(float(t) for t in np.clip(moved, 0.0, last_s)), last_s)


def grab(video: str, settings: JudgeSettings, repeat: int = 0) -> tuple[tuple[bytes, ...], tuple[float, ...]]:
    """Return JPEGs of a video's frames for a repeat, and their times in s. UnreadableVideo where there is no frame."""
    source = probe(video)
    times = shown_times(duration_s(video), settings.frames, repeat, settings.repeats)
    span = Span(0.0, times[-1] + 1.0)
    return grab_frames(video, span, times, Rect(0, 0, source.width, source.height), settings.width_px), times


def frame_labels(times_s: Sequence[float]) -> tuple[str, ...]:
    """Return the label before each frame in the question."""
    return tuple(f"Frame {number}, {time_s:.1f} s:" for number, time_s in enumerate(times_s, start=1))


class RecordedVlm:
    """A model whose every reply is stored under a folder, valid or not, and never asked for twice.

    The key is that of `Prompt.cache_key`: model, text with rubric hash, schema and frames. `asked` counts new questions, and
    `usage` their tokens. Replies that are errors of a server are not stored.
    """

    def __init__(self, vlm: Vlm, folder: str) -> None:
        self.name, self._vlm, self._folder = vlm.name, vlm, folder
        self.asked, self.usage = 0, {"prompt_tokens": 0, "completion_tokens": 0}

    def replies(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Reply]]:
        """Yield stored replies, then those of the model, each stored before it is yielded."""
        stored = storage.at_once(self.stored, prompts)
        for number, reply in enumerate(stored):
            if reply is not None:
                yield number, reply
        missing = [number for number, reply in enumerate(stored) if reply is None]
        for part, reply in self._vlm.replies([prompts[number] for number in missing]) if missing else ():
            self.asked += 1
            self.usage["prompt_tokens"] += reply.prompt_tokens
            self.usage["completion_tokens"] += reply.completion_tokens
            if not reply.error:
                storage.put(self._uri(prompts[missing[part]]), json.dumps(asdict(reply)).encode())
            yield missing[part], reply

    def stored(self, prompt: Prompt) -> Reply | None:
        """Return the stored reply to a prompt, or None."""
        try:
            return Reply(**json.loads(storage.read(self._uri(prompt))))
        except FileNotFoundError:
            return None

    def _uri(self, prompt: Prompt) -> str:
        key = prompt.cache_key(self.name)
        return storage.join(self._folder, key[:2], f"{key}.json")


@dataclass(frozen=True)
class Judgement:
    """One repeat: the scores under the rule of the trigger, or why there are none, and everything they come from.

    forced: the reply gave another dimension more than 0 although nothing was triggered. raw: the replies, the last one counts.
    """

    scores: dict[str, int] | None
    error: str | None
    evidence: dict[str, str]
    forced: bool
    frames_s: tuple[float, ...]
    frames_hash: str
    raw: tuple[str, ...]
    prompt_tokens: int
    completion_tokens: int
    unreadable: bool = False  # the video has no frame


def judge(vlm: RecordedVlm, cases: Sequence[Case], settings: JudgeSettings) -> list[list[Judgement]]:
    """Judge videos, all questions at once. Return the k judgements of each. OSError where the model cannot be reached.

    A video that cannot be read gets invalid judgements with the reason.
    """
    prompts: list[Prompt] = []
    times: list[tuple[float, ...]] = []
    places: list[tuple[int, int]] = []
    results: list[list[Judgement]] = [[] for _ in cases]
    for number, case in enumerate(cases):
        try:
            grabbed = [grab(case.video, settings, repeat) for repeat in range(settings.repeats)]
        except ValueError as error:
            results[number] = [_unread(str(error))] * settings.repeats
            continue
        subset = suite.find_subset(case.subset)
        for repeat, (frames, frames_s) in enumerate(grabbed):
            labels = frame_labels(frames_s)
            prompts.append(question(subset, case.base_prompt, case.interaction_prompt, frames, labels, repeat))
            times.append(frames_s)
            places.append((number, repeat))
    answers = ask(vlm, prompts)
    for (number, _), prompt, frames_s, answer in zip(places, prompts, times, answers, strict=True):
        results[number].append(_judgement(vlm, prompt, frames_s, answer.value, answer.error))
    return results


def _judgement(
    vlm: RecordedVlm, prompt: Prompt, frames_s: tuple[float, ...], value: dict[str, Any] | None, error: str | None
) -> Judgement:
    replies = _stored_replies(vlm, prompt)
    scores = {name: int(value[name]["score"]) for name in DIMENSIONS} if value else None
    forced = bool(scores and not scores["trigger"] and any(scores.values()))
    return Judgement(
        apply_trigger(scores) if scores else None,
        error,
        {name: value[name]["evidence"] for name in DIMENSIONS} if value else {},
        forced,
        frames_s,
        digest(*(frame.hex() for frame in prompt.frames)),
        tuple(reply.text for reply in replies),
        sum(reply.prompt_tokens for reply in replies),
        sum(reply.completion_tokens for reply in replies),
    )


def _stored_replies(vlm: RecordedVlm, prompt: Prompt) -> list[Reply]:
    """Return the reply to a question and, where that did not fit, the second one. Empty where a server gave errors only."""
    first = vlm.stored(prompt)
    if first is None:
        return []
    problem = parse_answer(first, prompt.schema).error
    second = vlm.stored(prompt.retry(first.text, problem)) if problem else None
    return [first, second] if second else [first]


def _unread(reason: str) -> Judgement:
    return Judgement(None, reason, {}, False, (), "", (), 0, 0, unreadable=True)


def mean_scores(judgements: Sequence[Judgement]) -> tuple[float, ...] | None:
    """Return a video's scores: the means over its valid repeats, or None where no repeat is valid."""
    valid = [[one.scores[name] for name in DIMENSIONS] for one in judgements if one.scores]
    return tuple(float(v) for v in np.mean(valid, 0)) if valid else None
