"""Vision-language models: frames, a question and a JSON schema go in, an answer that fits the schema comes out.

A backend is anything with `replies` (`protocol`); `asking` adds the cache, a second try and the accounting, `parsing` says
what a reply answers. A reply
that fails is that question's own affair; a model that cannot be reached at all is an `OSError`.
"""

from curation.vlm.asking import Ahead, ask, load, spent
from curation.vlm.parsing import Answer
from curation.vlm.protocol import EngineSettings, Prompt, Reply, ServerSettings, Vlm, VlmSettings

__all__ = [
    "Ahead",
    "Answer",
    "EngineSettings",
    "Prompt",
    "Reply",
    "ServerSettings",
    "Vlm",
    "VlmSettings",
    "ask",
    "load",
    "spent",
]
