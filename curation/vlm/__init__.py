"""Vision-language models: frames, a question and a JSON schema go in, an answer that fits the schema comes out.

A backend is any object with a `replies` method (`protocol`). `asking` adds the cache, a second try and the usage counts, and
`parsing` decides what a reply answers. A failed reply is the error of its own question. A model that cannot be reached at all
raises an `OSError`.
"""

from curation.vlm.asking import CacheOnlyVlm, ask, load
from curation.vlm.parsing import Answer
from curation.vlm.protocol import EngineSettings, Prompt, Reply, ServerSettings, VideoForm, Vlm, VlmSettings

__all__ = [
    "Answer",
    "CacheOnlyVlm",
    "EngineSettings",
    "Prompt",
    "Reply",
    "ServerSettings",
    "VideoForm",
    "Vlm",
    "VlmSettings",
    "ask",
    "load",
]
