"""The result of one video, as it is stored, and the settings of a run."""

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from model.evaluation.cases import Case
from model.evaluation.interbench.judge import Judgement, JudgeSettings, mean_scores
from model.evaluation.interbench.signals import VideoSignals


@dataclass(frozen=True)
class BenchSettings:
    """How InterBench runs. name: of the model that made the videos, for tables."""

    name: str = "model"
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    weighting: str = "subset"  # what a category is the mean of: its subsets, or its videos
    ceilings: int = 0  # how many cases of each subset have their ceilings judged


class VideoResult(NamedTuple):
    """Everything that is known of a video. Without a judge there are no judgements; without frames there is an error."""

    case: Case
    signals: VideoSignals | None
    judgements: tuple[Judgement, ...]
    flags: tuple[str, ...]
    error: str = ""

    @property
    def scores(self) -> tuple[float, ...] | None:
        """The means over the valid repeats, in the order of `DIMENSIONS`."""
        return mean_scores(self.judgements)


def to_json(result: VideoResult) -> dict[str, Any]:
    """Return a result as plain values."""
    return {
        "case": asdict(result.case),
        "signals": result.signals and result.signals._asdict(),
        "judgements": [asdict(one) for one in result.judgements],
        "flags": result.flags,
        "error": result.error,
    }


def from_json(data: dict[str, Any]) -> VideoResult:
    """Return the result that `to_json` wrote."""
    judgements = tuple(
        Judgement(**{**row, "frames_s": tuple(row["frames_s"]), "raw": tuple(row["raw"])}) for row in data["judgements"]
    )
    measured = data["signals"] and VideoSignals(**data["signals"])
    return VideoResult(Case(**data["case"]), measured, judgements, tuple(data["flags"]), data["error"])
