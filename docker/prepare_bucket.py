"""Makes the bucket of a store, if there is none, and tries out that the server honours conditional writes.

    python docker/prepare_bucket.py s3://bucket/prefix

Endpoint and credentials come from the AWS variables. Exit code 2: the server cannot be used; standard error says why.
In a bucket made here uploads that were begun and never ended are cleared away after a week, where the server knows
such rules.
"""

from __future__ import annotations

import sys

from privimage.errors import PrivimageError, StoreError
from privimage.store.files import Store
from privimage.store.s3 import s3_client
from privimage.store.s3_errors import as_oserror

WEEK = {
    "ID": "unfinished uploads",
    "Status": "Enabled",
    "Filter": {"Prefix": ""},
    "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
}


def main(url: str) -> int:
    try:
        prepare(url)
    except PrivimageError as error:
        print(f"privimage: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{url}: conditional writes work")
    return 0


def prepare(url: str) -> None:
    """Make the bucket and probe the store.

    Raises:
        StoreError: the bucket can be neither found nor made, or two writers of one name both won.
    """
    bucket = url.removeprefix("s3://").split("/")[0]
    try:
        Store.open(url)
    except StoreError:
        make(bucket)
    Store.open(url).probe()


def make(bucket: str) -> None:
    server = s3_client(attempts=5)
    nowhere = FileNotFoundError(bucket)
    try:
        with as_oserror(missing_bucket=nowhere):
            server.create_bucket(Bucket=bucket)
    except OSError as error:
        raise StoreError(f"Bucket {bucket!r} can be neither found nor made ({error}).") from error
    try:
        with as_oserror(missing_bucket=nowhere):
            server.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [WEEK]})
    except OSError as error:
        print(f"{bucket}: this server clears no unfinished uploads away ({error})", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
