"""Base of read-only files of known size whose bytes are fetched by ranges."""

import io


class RangedFile(io.RawIOBase):
    """A seekable raw file of `_size` bytes, which reads from `_at` on. Subclasses define `readinto`."""

    def __init__(self, size: int) -> None:
        self._size, self._at = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at
