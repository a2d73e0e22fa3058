"""What s3fs, botocore and aiohttp raise, as the OSError that a local disk would have raised."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from privimage.store.patience import PassingFault

__all__ = ["as_oserror"]

# 409: a competing write to the same name is not decided yet. 429: too many requests.
_PASSING_STATUS = frozenset({409, 429, 500, 502, 503, 504})
# Faults that S3 reports with the status of a bad request, though only the transfer was.
_PASSING_CODES = frozenset(
    {
        "BadDigest",
        "IncompleteBody",
        "RequestTimeout",
        "SlowDown",
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
    }
)


@contextmanager
def as_oserror(*, missing_bucket: OSError) -> Iterator[None]:
    """Raise PassingFault, FileNotFoundError, FileExistsError, PermissionError, or another OSError.

    Args:
        missing_bucket: what to raise where not only the object is missing.
    """
    import aiohttp
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError

    try:
        yield
    except OSError as error:
        meaning = _meaning(error, missing_bucket)
        if meaning is error:
            raise
        raise meaning from error
    except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError) as error:
        raise PermissionError(str(error)) from error
    except (
        boto.HTTPClientError,
        boto.ConnectionError,
        boto.FlexibleChecksumError,
        boto.IncompleteReadError,
        ResponseParserError,
        aiohttp.ClientError,
    ) as error:
        raise PassingFault(str(error)) from error
    except boto.BotoCoreError as error:
        raise OSError(errno.EINVAL, str(error)) from error


def _meaning(error: OSError, missing_bucket: OSError) -> OSError:
    """What s3fs made an OSError of, told by the server's answer; the error itself where that says all."""
    reply = getattr(error.__cause__, "response", None)
    if reply is None:  # no answer, or an error of the local disk
        away = isinstance(error, TimeoutError | ConnectionError)
        return PassingFault(str(error) or type(error).__name__) if away else error
    status = reply.get("ResponseMetadata", {}).get("HTTPStatusCode")
    code = reply.get("Error", {}).get("Code")
    text = f"{code}: {reply.get('Error', {}).get('Message') or f'status {status}'}"
    if status == 412:
        return FileExistsError(text)
    # NoSuchUpload: the reply to a completed upload got lost, or somebody clears away unfinished ones.
    if status in _PASSING_STATUS or code in _PASSING_CODES or code == "NoSuchUpload":
        return PassingFault(text)
    if code == "NoSuchBucket":
        return missing_bucket
    if isinstance(error, PermissionError):
        return PermissionError(text)
    return error
