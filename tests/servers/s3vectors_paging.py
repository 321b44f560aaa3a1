"""Pages: what a nextToken holds, and the pages of listings by name."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeVar

from tests.servers.s3vectors_index import Place, VectorIndex
from tests.servers.s3vectors_records import invalid

LIST_PAGE = 500  # the default of every listing


class _Named(Protocol):
    name: str


_Item = TypeVar("_Item", bound=_Named)


def write_token(*parts: Any) -> str:
    """Return an opaque token of JSON values."""
    return urlsafe_b64encode(json.dumps(parts).encode()).decode()


def read_token(token: str, *kinds: type) -> list[Any]:
    """Return the values of a token; refuses one that does not hold values of these kinds."""
    try:
        parts = json.loads(urlsafe_b64decode(token))
    except ValueError as error:  # not base64, not text, or not JSON
        raise invalid("Invalid page token", "nextToken") from error
    if not isinstance(parts, list) or [type(part) for part in parts] != list(kinds):
        raise invalid("Invalid page token", "nextToken")
    return parts


def page_by_name(items: Iterable[_Item], asked: Mapping[str, Any]) -> tuple[list[_Item], dict[str, str]]:
    """Return one page in the order of names, and the nextToken member if there is more."""
    (after,) = read_token(asked["nextToken"], str) if "nextToken" in asked else ("",)
    prefix, limit = asked.get("prefix", ""), asked.get("maxResults", LIST_PAGE)
    found = [item for item in items if item.name.startswith(prefix) and item.name > after]
    found.sort(key=lambda item: item.name)
    page = found[:limit]
    return page, {"nextToken": write_token(page[-1].name)} if len(found) > limit else {}


def page_of_vectors(index: VectorIndex, asked: Mapping[str, Any]) -> tuple[list[Place], dict[str, str]]:
    """Return one page of ListVectors, and the nextToken member if there is more."""
    segment, after = _segment(asked), None
    if "nextToken" in asked:
        arn, number, count, *place = read_token(asked["nextToken"], str, int, int, int, str)
        if (arn, (number, count)) != (index.arn, segment):
            raise invalid("The page token is of another listing", "nextToken")
        after = (place[0], place[1])
    page, more = index.page(after, asked.get("maxResults", LIST_PAGE), segment)
    return page, {"nextToken": write_token(index.arn, *segment, *page[-1])} if more else {}


def _segment(asked: Mapping[str, Any]) -> tuple[int, int]:
    """Return (index, count) of the segment to list."""
    number, count = asked.get("segmentIndex"), asked.get("segmentCount")
    if number is None and count is None:
        return 0, 1
    if number is None or count is None:
        raise invalid("Specify both segmentCount and segmentIndex, or neither", "segmentIndex")
    if number >= count:
        raise invalid("segmentIndex must be less than segmentCount", "segmentIndex")
    return number, count
