"""Write frames as an MP4 that browsers play."""

import io
from fractions import Fraction

import av
import numpy as np

_CRF = "16"  # visually lossless: artefacts in a video of a replay must be the model's


class Mp4Writer:
    """Collects frames; `finish` returns the file. Frames of an odd width or height lose their last column or row."""

    def __init__(self, fps: float) -> None:
        self._rate = Fraction(fps).limit_denominator(1001)
        self._file = io.BytesIO()
        self._container = av.open(self._file, "w", format="mp4")
        self._stream: av.VideoStream | None = None

    def add(self, frames_nHW3: np.ndarray) -> None:
        height, width = (side - side % 2 for side in frames_nHW3.shape[1:3])
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=self._rate, options={"crf": _CRF, "preset": "veryfast"})
            self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
            self._stream.codec_context.thread_count = 1  # the engine needs the other cores
        for frame in frames_nHW3:
            cropped = np.ascontiguousarray(frame[:height, :width])
            self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(cropped, format="rgb24")))

    def finish(self) -> bytes:
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._file.getvalue()
