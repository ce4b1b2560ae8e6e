"""How coarsely a decoded frame was coded, by the quantiser in its own stream, as a level of damage.

Decoders of VP9 and MPEG-4 part 2 (and its relatives) export the quantiser of each frame (`VIDEO_ENC_PARAMS`), if they are asked
to, as `curation.media.container` does. This is the quantiser of the last encoding only: footage that was coded coarsely, and
later well, has a fine one. Levels are those of `docs/models/quality.md`.

The table below was measured by hand, and no script makes it. VP9 (index 0 to 255): means over forty frames of three clips that
were encoded at the amounts of `bench.degrade.AMOUNTS`; at one amount all three have nearly the same index. MPEG-4 and its
relatives (1 to 31, counted double): those amounts themselves. Values at level 0.6 are extrapolated, since neither codec goes so
far: index 255 is level 0.56, and a quantiser of 31 is 0.53.

H.264's quantiser is exported too, and not used: x264 raises it where motion hides damage, so that at one level it differs by 3
to 7 steps of 51 from clip to clip. Two clean recordings fell from 0.73 and 0.78 to 0.50 and 0.56 with it (docs/log.md).
"""

from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type

_VP9, _MPEG2 = 0, 2
# Quantisers at levels 0, 0.1, 0.2, 0.4, 0.6, by FFmpeg's kinds of quantiser; those of MPEG-2 and MPEG-4 count double.
_LEVELS = (0.0, 0.1, 0.2, 0.4, 0.6)
_QUANTISERS = {_VP9: (33.0, 136.0, 177.0, 230.0, 262.0), _MPEG2: (2.0, 12.4, 20.8, 41.4, 74.0)}


def coded_level(frame: av.VideoFrame) -> float | None:
    """Return the level of damage, 0 to 1, that a frame's quantiser stands for, or None where it is not known."""
    sides: Any = frame.side_data
    for data in sides:
        if data.type == Type.VIDEO_ENC_PARAMS:
            kind, quantiser = _mean_quantiser(np.frombuffer(bytes(data), np.uint8))
            return float(np.interp(quantiser, _QUANTISERS[kind], _LEVELS)) if kind in _QUANTISERS else None
    return None


def _mean_quantiser(data: np.ndarray) -> tuple[int, float]:
    """Return the kind of a frame's quantisers, and their mean over its blocks, from FFmpeg's `AVVideoEncParams`."""
    count = int(data[:4].view("<u4")[0])
    first, size = (int(value) for value in data[8:24].view("<u8"))
    kind, quantiser = (int(value) for value in data[24:32].view("<i4"))
    if not count:
        return kind, float(quantiser)
    blocks = data[first : first + count * size].reshape(count, size)
    return kind, quantiser + float(np.ascontiguousarray(blocks[:, 16:20]).view("<i4").mean())
