"""Objects below a prefix of an S3 bucket."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ragctl.adapters.aws import aws_errors
from ragctl.errors import DocumentError, NotFound, PermissionDenied
from ragctl.globs import nfc
from ragctl.sources.listing import Listing, Rules, too_large

if TYPE_CHECKING:
    from ragctl.records import SourceFile


@dataclass(frozen=True)
class S3Prefix:
    """The objects below a prefix, which is a folder: `papers` means `papers/`. `client` is boto3's for "s3"."""

    bucket: str
    prefix: str
    rules: Rules
    max_bytes: int
    client: Any

    @property
    def name(self) -> str:
        return self.rules.name

    def list(self, ignored: Counter[str] | None = None) -> Iterator[SourceFile]:
        """Every object that the globs ask for, 1,000 to a call. See `Source.list`."""
        listing = Listing(self.rules)
        root = f"{self.prefix.rstrip('/')}/" if self.prefix.strip("/") else ""
        for listed in self._objects(root):
            key = listed["Key"]
            path = nfc(key.removeprefix(root))
            if not key.endswith("/") and listing.wants(path):  # consoles make empty "folder" objects
                yield listing.file(
                    path,
                    location=f"s3://{self.bucket}/{key}",
                    size=listed["Size"],
                    stamp=f"{listed['ETag'].strip(chr(34))}-{listed['Size']}",
                )
        listing.report(ignored)

    def read(self, file: SourceFile) -> bytes:
        """The object's bytes. See `Source.read`; ServiceError when S3 fails."""
        if file.size > self.max_bytes:
            raise too_large(file, self.max_bytes)
        key = file.location.removeprefix(f"s3://{self.bucket}/")
        try:
            with aws_errors("s3:GetObject", file.location):
                data: bytes = self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read(
                    self.max_bytes + 1
                )
        except NotFound as error:
            raise DocumentError(f"{file.id} has vanished since it was listed") from error
        except PermissionDenied as error:
            raise DocumentError(f"{file.id} cannot be read: {error.message}", hint=error.hint) from error
        if len(data) > self.max_bytes:
            raise too_large(file, self.max_bytes)
        return data

    def _objects(self, root: str) -> Iterator[dict[str, Any]]:
        pages = self.client.get_paginator("list_objects_v2")
        with aws_errors("s3:ListObjectsV2", f"s3://{self.bucket}/{root}"):
            for page in pages.paginate(Bucket=self.bucket, Prefix=root):
                yield from page.get("Contents", [])
