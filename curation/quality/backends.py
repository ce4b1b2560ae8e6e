"""Load a quality backend by its name in the recipe."""

from curation.quality.embedded_backend import EmbeddedIqa
from curation.quality.iqa import Iqa, IqaSettings


def load_iqa(settings: IqaSettings) -> Iqa:
    """Load the backend of these settings. Unavailable says what is missing on this machine, and the remedies."""
    if settings.backend == "embedded":
        return EmbeddedIqa()
    from curation.quality.pyiqa_backend import PyiqaIqa

    return PyiqaIqa(settings.backend.removeprefix("pyiqa:"), settings.weights)
