"""What a server of the play page allows, and the bucket that slows down a client which sends too much."""

from dataclasses import dataclass

PROMPT_CHARS = 400


@dataclass(frozen=True)
class Limits:
    """Limits of a server. A client reads them in `ready`."""

    sessions: int = 2  # players at a time; they share the engines block by block
    waiting: int = 16  # people who wait for a session
    connections: int = 64  # open sockets, with those that only look
    idle_s: float = 600.0  # without input for so long a session ends
    lifetime_s: float = 1800.0  # a session ends after this, so that a queue moves
    grace_s: float = 30.0  # a session whose connection broke is kept for this long
    hello_s: float = 10.0  # a client that does not say hello is closed
    stall_pause_s: float = 2.0  # without an acknowledged frame for so long a session pauses
    stall_close_s: float = 60.0  # and after this its connection is closed
    messages_per_s: float = 100.0  # more of them are read late, not lost
    message_burst: float = 200.0  # messages that may come at once
    message_bytes: int = 64 * 1024  # a longer message counts as several; only `start` with an image may be longer
    image_bytes: int = 8 * 2**20  # a start image, as a file
    image_side_px: int = 4096  # its longer side: a small file can unpack into gigabytes
    record_bytes: int = 32 * 2**20  # a .gcplay file that is uploaded to be replayed
    prompt_chars: int = PROMPT_CHARS


class TokenBucket:
    """Say how long a client has to wait before its next message is read."""

    def __init__(self, per_s: float, burst: float, now: float) -> None:
        self._per_s, self._burst, self._tokens, self._at = per_s, burst, burst, now

    def take(self, tokens: float, now: float) -> float:
        """Take tokens, which may leave a debt; return the seconds until the debt is paid, 0 without one."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s) - tokens
        self._at = now
        return max(0.0, -self._tokens / self._per_s)
