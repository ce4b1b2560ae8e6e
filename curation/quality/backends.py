"""Load a quality backend by its name in the recipe."""

from curation.quality.embedded_backend import Embedded
from curation.quality.iqa import Iqa, IqaSettings


def load_iqa(settings: IqaSettings) -> Iqa:
    """The backend of these settings, ready. FileNotFoundError says what is missing on this machine, and the remedies."""
    if settings.backend == "embedded":
        return Embedded()
    from curation.quality.pyiqa_backend import Pyiqa

    return Pyiqa(settings.backend.removeprefix("pyiqa:"), settings.weights)
