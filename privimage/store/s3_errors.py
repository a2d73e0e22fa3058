"""What botocore raises, as the OSError that a local disk would have raised."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from privimage.store.patience import PassingFault

__all__ = ["as_oserror"]

# 409: a competing write to the same name is not decided yet. 429: too many requests.
_PASSING_STATUS = frozenset({409, 429, 500, 502, 503, 504})
# Faults that S3 reports with the status of a bad request, though only the transfer was. NoSuchUpload: the reply to a
# completed upload got lost, or somebody clears away unfinished ones.
_PASSING_CODES = frozenset(
    {
        "BadDigest",
        "IncompleteBody",
        "NoSuchUpload",
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
    try:
        yield
    except boto.ClientError as error:
        raise _meaning(error, missing_bucket) from error
    except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError) as error:
        raise PermissionError(str(error)) from error
    except (
        boto.HTTPClientError,
        boto.ConnectionError,
        boto.FlexibleChecksumError,
        boto.IncompleteReadError,
        ResponseParserError,
    ) as error:
        raise PassingFault(str(error)) from error
    except boto.BotoCoreError as error:
        raise OSError(errno.EINVAL, str(error)) from error


def _meaning(error: boto.ClientError, missing_bucket: OSError) -> OSError:
    """What the server's answer means; some servers give a code without a message, and to HEAD a status only."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = error.response.get("Error", {}).get("Code", "")
    text = f"{code}: {error.response.get('Error', {}).get('Message') or f'status {status}'}"
    if status in _PASSING_STATUS or code in _PASSING_CODES:
        return PassingFault(text)
    if code == "NoSuchBucket":
        return missing_bucket
    match status:
        case 404:
            return FileNotFoundError(text)
        case 412:
            return FileExistsError(text)
        case 401 | 403:
            return PermissionError(text)
    return OSError(errno.EIO, text)
