"""Pages of items."""

import re

from aiohttp import web

from osaurusd.errors import InvalidRequest
from osaurusd.http.errors import excerpt
from osaurusd.protocols.openai.responses.types import Item, ItemList

MAX_PAGE = 100
DEFAULT_PAGE = 20
_NUMBER = re.compile(r"[0-9]{1,9}")


def page_of(request: web.Request, items: list[Item]) -> ItemList:
    """Return the page of items that the query asks for, newest first by default.

    Raises:
        InvalidRequest: a parameter of the query is invalid.
    """
    limit = request.query.get("limit", str(DEFAULT_PAGE))
    if not _NUMBER.fullmatch(limit) or not 1 <= int(limit) <= MAX_PAGE:
        raise InvalidRequest(f'`limit`: must be between 1 and {MAX_PAGE}, not "{excerpt(limit)}"', param="limit")
    order = request.query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest(f'`order`: must be `asc` or `desc`, not "{excerpt(order)}"', param="order")
    ordered = items if order == "asc" else items[::-1]
    ids = [item.get("id") for item in ordered]
    after = request.query.get("after")
    if after is not None and after not in ids:
        raise InvalidRequest(f'`after`: "{excerpt(after)}" is not the id of an item', param="after")
    start = 0 if after is None else ids.index(after) + 1
    page = ordered[start : start + int(limit)]
    return list_of(page, has_more=start + len(page) < len(ordered))


def list_of(items: list[Item], *, has_more: bool = False) -> ItemList:
    return ItemList(
        data=items,
        first_id=items[0].get("id") if items else None,
        last_id=items[-1].get("id") if items else None,
        has_more=has_more,
    )
