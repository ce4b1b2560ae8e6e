"""S3 and stores that speak its protocol, through boto3. For `curation.storage`, which callers use."""

import logging
import math
import random
import re
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO

from curation.errors import Unavailable, describe
from curation.processes import per_process
from curation.ranged_file import RangedFile
from curation.uris import Entry, Stamped, require_version
from curation.worker_state import worker

MAX_CONNECTIONS = 16
# A file is fetched in blocks, which a process keeps over seeks and openings: a demuxer jumps between a file's header, its index
# and its frames. A jump fetches one block.
_BLOCK_BYTES = 16 << 10
# Where reads follow each other, as many bytes are fetched ahead as were read in order so far, up to this, ...
_AHEAD_BYTES = 128 << 10
# ... and once that is a quarter of what was read, a quarter, up to this, which is also the range of announced spans
# (`RangeFile.announce`). Fetching more ahead wastes what lies behind a span; less makes a long decode wait on round trips.
RANGE_BYTES = 4 << 20
BUFFER_BYTES = 64 << 10
# What a process keeps: blocks that may be read again, and blocks of announced spans, which are read once.
_KEPT_BYTES, _PASSING_BYTES = 32 << 20, 8 << 20
# How often a read is tried whose answer is short or has other bytes, each time on fresh connections.
_READ_TRIES = 3
# How often a request is sent that the store puts off or does not answer, and the longest pause between two tries.
_REQUEST_TRIES, _LONGEST_PAUSE_S = 12, 20.0
# Answers to a conditional write that was not done. 409: there were two at once, and the other one is being written.
_NOT_WRITTEN = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
_UNKNOWN_TO_STORE = ("NotImplemented", "501")
# The most objects that one request may delete.
_DELETED_AT_ONCE = 1000
# Answers to more requests than the store takes.
_THROTTLED = (503, 429)
# Throttling is reported from this many answers on, and no more often than this.
_REPORT_FROM, _REPORT_EVERY_S, _reported_s = 5, 60.0, -math.inf


@per_process
def client(brief: bool = False) -> Any:
    """Build an S3 client of this process; the endpoint and the keys come from the usual AWS environment.

    brief: one that gives up within a minute, for locks, whose holder must know in time that they cannot be kept.
    """
    import boto3
    from botocore.config import Config

    # Not "adaptive": with 16 threads on a store that throttles 30 % of the requests it made 1.2 a second, "standard" 21. But
    # "standard" gives up requests while the process repeats many of them; `_retry_pause_s` continues (docs/log.md).
    patient = Config(max_pool_connections=MAX_CONNECTIONS, retries={"total_max_attempts": _REQUEST_TRIES, "mode": "standard"})
    short = Config(connect_timeout=3, read_timeout=5, retries={"total_max_attempts": 4, "mode": "standard"})
    # A separate session: the default one is shared with a forked child, and is not safe between threads.
    built = boto3.Session().client("s3", config=short if brief else patient)
    built.meta.events.register("response-received.s3", _count_response)
    if not brief:
        built.meta.events.register_last("needs-retry.s3", _retry_pause_s)
    return built


def _count_response(response_dict: dict[str, Any] | None, **_: Any) -> None:
    """Count every answer, also to repeated requests, and log now and then that the store throttles."""
    global _reported_s
    worker.s3_requests["all"] += 1
    if not response_dict or response_dict.get("status_code") not in _THROTTLED:
        return
    worker.s3_requests["throttled"] += 1
    if worker.s3_requests["throttled"] >= _REPORT_FROM and time.monotonic() >= _reported_s + _REPORT_EVERY_S:
        _reported_s = time.monotonic()
        logging.getLogger(__name__).warning("%s", throttling(worker.s3_requests))


def _retry_pause_s(attempts: int, response: Any, caught_exception: Exception | None, **_: Any) -> float | None:
    """Return the pause, s, before a throttled or unanswered request is sent again, or None to give it up.

    botocore calls its own handler first.
    """
    status = response[0].status_code if response else None
    trouble = status in (*_THROTTLED, 500, 502, 504) or isinstance(caught_exception, _unanswered())
    if not trouble or attempts >= _REQUEST_TRIES:
        return None
    return random.random() * min(2.0 ** (attempts - 1), _LONGEST_PAUSE_S)  # noqa: S311  spreads requests, hides nothing


def _unanswered() -> tuple[type[Exception], ...]:
    from botocore.exceptions import ConnectionError as NoConnection
    from botocore.exceptions import HTTPClientError

    return NoConnection, HTTPClientError


def throttling(counts: Mapping[str, int]) -> str:
    """Describe how many of these requests (`WorkerState.s3_requests`) S3 throttled; empty where it throttled none."""
    if not counts.get("throttled"):
        return ""
    return (
        f"S3 throttled {counts['throttled']} of {counts['all']} requests (503 or 429); they are repeated later, which takes "
        "time. Fewer workers, or sources spread over more prefixes, help"
    )


def _bucket_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


@contextmanager
def _as_os_errors(uri: str) -> Iterator[None]:
    """Turn refusals, and a store that cannot be reached, into the errors of a local file, so that callers handle one kind."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except NoCredentialsError as error:
        raise Unavailable(
            f"{uri}: this machine has no S3 credentials; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    except ClientError as error:
        raise _as_os_error(uri, error) from error
    except (BotoCoreError, HTTPError) as error:
        raise OSError(f"{uri}: {str(error) or describe(error)}") from error


def list_files(prefix: str) -> list[Entry]:
    bucket, key = _bucket_key(prefix)
    with _as_os_errors(prefix):
        pages = client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
        listed = [item for page in pages for item in page.get("Contents", [])]
    inside = [i for i in listed if not key or i["Key"] == key or i["Key"].startswith(key.rstrip("/") + "/")]
    return [
        Entry(f"s3://{bucket}/{i['Key']}", i["Size"], f"{i['Size']}-{_plain_etag(i['ETag'])}")
        for i in inside
        if not i["Key"].endswith("/")
    ]


def version(uri: str) -> str:
    bucket, key = _bucket_key(uri)
    with _as_os_errors(uri):
        head = client().head_object(Bucket=bucket, Key=key)
    return f"{head['ContentLength']}-{_plain_etag(head['ETag'])}"


def _plain_etag(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


def _quoted_etag(token: str) -> str:
    """Return the ETag of a version as headers spell it."""
    return f'"{token.partition("-")[2]}"'


class _WrongAnswer(Exception):
    """The store answered a read with other bytes than requested, or with too few."""


def read(uri: str, start: int, length: int | None, token: str = "") -> bytes:
    """Read a range of an object and check it. A wrong answer is tried again; OSError where it stays wrong."""
    if length == 0:
        return b""  # a range names at least one byte
    trouble = ""
    for _ in range(_READ_TRIES):
        try:
            return _read_range(uri, start, length, token)
        except _WrongAnswer as error:
            trouble = str(error)
            client().close()  # closes the idle connections of the pool: one that is out of step stays so
            _require(uri, token)
    raise OSError(f"{uri}: {trouble}, {_READ_TRIES} times")


def _read_range(uri: str, start: int, length: int | None, token: str) -> bytes:
    from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError
    from urllib3.exceptions import HTTPError

    bucket, key = _bucket_key(uri)
    whole = start == 0 and length is None
    wanted = {} if whole else {"Range": f"bytes={start}-{'' if length is None else start + length - 1}"}
    if token:
        wanted["IfMatch"] = _quoted_etag(token)
    with _as_os_errors(uri):
        try:
            answer = client().get_object(Bucket=bucket, Key=key, **wanted)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in ("PreconditionFailed", "412") and token:
                _require(uri, token)
                raise OSError(f"{uri}: the store refuses If-Match with the ETag that it gives itself") from error
            if code != "InvalidRange":
                raise
            _require(uri, token)
            return b""
        with closing(answer["Body"]) as body:  # closed before its end, a connection is not used again
            expected = _expected_bytes(answer, None if whole else (start, length), token)
            try:
                data: bytes = body.read()
            except (HTTPClientError, IncompleteReadError, HTTPError, ConnectionError) as error:
                raise _WrongAnswer(f"the answer broke off ({describe(error)})") from error
    if len(data) != expected:
        raise _WrongAnswer(f"{len(data)} bytes came instead of {expected}")
    return data


def _expected_bytes(answer: Any, span: tuple[int, int | None] | None, token: str) -> int:
    """Return how many bytes an answer must have: the range (start, length), or the whole object (None), of this version."""
    size, _, etag = token.partition("-")
    if token and _plain_etag(answer.get("ETag", "")) != etag:
        raise _WrongAnswer(f"requested ETag {etag}, the answer has {answer.get('ETag')}")
    if span is None:
        first, last, total = 0, answer["ContentLength"] - 1, answer["ContentLength"]
    else:
        header = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.get("ContentRange") or "")
        if not header:
            raise _WrongAnswer(f"requested a range, the answer has Content-Range {answer.get('ContentRange')}")
        first, last, total = (int(number) for number in header.groups())
    start, length = span or (0, None)
    end = total if length is None else min(start + length, total)
    if (first, last + 1) != (start, end) or (token and total != int(size)):
        wanted = f"bytes {start} to {end} of {size or total}"
        raise _WrongAnswer(f"requested {wanted}, the answer has {first} to {last + 1} of {total}")
    return end - start


def put(uri: str, data: bytes | BinaryIO, if_absent: bool) -> bool:
    from botocore.exceptions import ClientError

    bucket, key = _bucket_key(uri)
    condition = {"IfNoneMatch": "*"} if if_absent else {}
    with _as_os_errors(uri):
        try:
            client().put_object(Bucket=bucket, Key=key, Body=data, **condition)
        except ClientError as error:
            if error.response["Error"]["Code"] not in _NOT_WRITTEN:
                raise
            return False
    return True


def replace(uri: str, data: bytes, token: str) -> str:
    from botocore.exceptions import ClientError

    bucket, key = _bucket_key(uri)
    condition = {"IfMatch": _quoted_etag(token)} if token else {"IfNoneMatch": "*"}
    with _as_os_errors(uri):
        try:
            answer = client(brief=True).put_object(Bucket=bucket, Key=key, Body=data, **condition)
        except ClientError as error:
            if error.response["Error"]["Code"] in (*_NOT_WRITTEN, "NoSuchKey", "404"):
                return ""
            raise
    return f"{len(data)}-{_plain_etag(answer['ETag'])}"


def copy(uri: str, target: str) -> None:
    """Copy an object of any size inside the store."""
    bucket, key = _bucket_key(uri)
    target_bucket, target_key = _bucket_key(target)
    with _as_os_errors(uri):
        client().copy({"Bucket": bucket, "Key": key}, target_bucket, target_key)


def delete(uri: str) -> None:
    bucket, key = _bucket_key(uri)
    with _as_os_errors(uri):
        client().delete_object(Bucket=bucket, Key=key)


def delete_all(uris: Sequence[str]) -> None:
    """Delete objects by requests of up to 1,000 each. OSError names the first that the store could not delete."""
    by_bucket: dict[str, list[str]] = {}
    for uri in uris:
        bucket, key = _bucket_key(uri)
        by_bucket.setdefault(bucket, []).append(key)
    for bucket, keys in by_bucket.items():
        for first in range(0, len(keys), _DELETED_AT_ONCE):
            wanted = {"Objects": [{"Key": key} for key in keys[first : first + _DELETED_AT_ONCE]], "Quiet": True}
            with _as_os_errors(f"s3://{bucket}/{keys[first]}"):
                answer = client().delete_objects(Bucket=bucket, Delete=wanted)
            for error in answer.get("Errors", [])[:1]:
                raise OSError(f"s3://{bucket}/{error.get('Key')}: cannot be deleted ({error.get('Code')})")


def read_stamped(uri: str) -> Stamped:
    bucket, key = _bucket_key(uri)
    with _as_os_errors(uri):
        answer = client(brief=True).get_object(Bucket=bucket, Key=key)
        data: bytes = answer["Body"].read()
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    now = parsedate_to_datetime(date).timestamp() if date else time.time()
    return Stamped(data, f"{len(data)}-{_plain_etag(answer['ETag'])}", now - answer["LastModified"].timestamp())


def is_refusal(error: OSError) -> bool:
    """Whether a store lacks conditional writes, rather than failed at this one."""
    answer = getattr(error.__cause__, "response", {}).get("Error", {})
    return answer.get("Code") in _UNKNOWN_TO_STORE or "If-" in answer.get("Message", "")


def _as_os_error(uri: str, error: Any) -> OSError:
    code = error.response["Error"]["Code"]
    if code in ("NoSuchKey", "NoSuchBucket", "404"):
        return FileNotFoundError(f"{uri}: {code}")
    if code in ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
        return PermissionError(f"{uri}: {code}")
    return OSError(f"{uri}: {code}: {error}")


_Blocks = OrderedDict[tuple[str, str, int, int], bytes]
# Blocks of objects by uri, version, block size and number, the one that was used last at the end. Those of announced spans are
# kept apart, and fewer of them: they are read once, and must not push out an index.
_kept, _passing = _Blocks(), _Blocks()


class RangeFile(RangedFile):
    """One version of an S3 object as a raw read-only file, fetched by range requests with If-Match.

    A read returns what the block at its start still has, which may be less than requested. All files of a process share its
    blocks. `SourceChanged` where the object has another version than `token`; OSError where the store keeps answering wrongly.
    """

    def __init__(self, uri: str, token: str = "") -> None:
        self._uri, self._token = uri, version(uri)
        require_version(uri, token, self._token)
        super().__init__(int(self._token.partition("-")[0]))
        self._block = min(_BLOCK_BYTES, RANGE_BYTES)
        self._last, self._run = -1, 0  # the block that was read last, and the bytes that were read in order until there
        self._announced = range(0)  # of blocks

    def announce(self, start: int, end: int) -> None:
        """Say that the bytes [start, end) will be read in order: large requests fetch them, none past the last block."""
        self._announced = range(start // self._block, -(-min(end, self._size) // self._block))

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._size - self._at)
        if length <= 0:
            return 0
        number, begin = divmod(self._at, self._block)
        if number not in (self._last, self._last + 1) or number == self._announced.stop:
            self._run = 0
        data = self._read_block(number)[begin : begin + length]
        buffer[: len(data)] = data
        self._at, self._last, self._run = self._at + len(data), number, self._run + len(data)
        return len(data)

    def _read_block(self, number: int) -> bytes:
        """Return a block, which is fetched with those after it that are likely to be read, unless it is kept."""
        for blocks in (_kept, _passing):
            if (data := blocks.get(self._key(number))) is not None:
                with suppress(KeyError):  # another thread has dropped it just now
                    blocks.move_to_end(self._key(number))
                return data
        if number in self._announced:
            blocks, limit = _passing, max(_PASSING_BYTES, RANGE_BYTES)
            most = min(RANGE_BYTES // self._block, self._announced.stop - number)
        else:
            blocks, limit = _kept, _KEPT_BYTES
            most = min(RANGE_BYTES, max(min(self._run, _AHEAD_BYTES), self._run // 4)) // self._block
        ahead = next((count for count in range(1, most) if self._is_kept(number + count)), max(1, most))
        start = number * self._block
        data = read(self._uri, start, min(ahead * self._block, self._size - start), self._token)
        for at in range(0, len(data), self._block):
            blocks[self._key(number + at // self._block)] = data[at : at + self._block]
        while len(blocks) > limit // self._block:
            with suppress(KeyError):
                blocks.popitem(last=False)
        return data[: self._block]

    def _is_kept(self, number: int) -> bool:
        return self._key(number) in _kept or self._key(number) in _passing

    def _key(self, number: int) -> tuple[str, str, int, int]:
        return self._uri, self._token, self._block, number


def _require(uri: str, token: str) -> None:
    require_version(uri, token, version(uri))
