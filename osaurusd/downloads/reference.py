"""What users write for a repository on the hub: `ORG/NAME`, a short name, or the URL of its page."""

import os
import re
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from osaurusd.errors import InvalidRequest

_HUB_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
_OTHER_KINDS = frozenset({"datasets", "spaces", "collections", "papers", "docs"})
_PAGES = frozenset({"tree", "blob", "resolve", "commit"})

_MAX_LENGTH = 200
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)*")


def parse_reference(text: str, env: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """Return the repository, or a name without `/`, and the revision (default: main).

    Accepts `NAME@REVISION`, and the URL of a page of the hub or of the mirror that HF_ENDPOINT names, with or without
    the scheme.

    Raises:
        InvalidRequest: the text is not a reference to a model on the hub.
    """
    name, separator, revision = text.strip().partition("@")
    revision = revision if separator else "main"
    if (path := _hub_path(name, env)) is not None:
        name, page_revision = _parse_path(name, path)
        revision = revision if separator else page_revision
    if len(text) > _MAX_LENGTH:
        raise InvalidRequest(f"a model name has at most {_MAX_LENGTH} characters", location=("model",))
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise InvalidRequest(
            f'invalid revision "{revision[:_MAX_LENGTH]}"; use the name of a branch or tag, or a commit',
            location=("model",),
        )
    if "/" in name and (not _REPO.fullmatch(name) or "--" in name or ".." in name):
        raise InvalidRequest(f'invalid repository "{name}"; use ORG/NAME', location=("model",))
    return name, revision


def _hub_path(text: str, env: Mapping[str, str]) -> list[str] | None:
    """Return the parts of the path of a hub URL; None if the text is not a URL."""
    scheme, separator, rest = text.partition("://")
    if scheme.lower() == "hf" and separator:
        return [part for part in rest.split("/") if part and part != "models"]
    hosts = _HUB_HOSTS | {_split_url(env.get("HF_ENDPOINT", ""))[0]} - {""}
    host, path = _split_url(text if separator else f"//{text}")
    if host not in hosts:
        if separator:
            raise InvalidRequest(
                f'"{text[:_MAX_LENGTH]}" is not a page of the Hugging Face Hub; use ORG/NAME or '
                "https://huggingface.co/ORG/NAME",
                location=("model",),
            )
        return None
    return [unquote(part) for part in path.split("/") if part]


def _split_url(text: str) -> tuple[str, str]:
    """Return the host and the path of a URL; empty ones if it is malformed."""
    try:
        url = urlsplit(text)
    except ValueError:
        return "", ""
    return url.netloc.lower(), url.path


def _parse_path(text: str, path: list[str]) -> tuple[str, str]:
    """Return the repository and the revision of a page of the hub."""
    if path and path[0] in _OTHER_KINDS:
        raise InvalidRequest(f'"{text[:_MAX_LENGTH]}" is not the page of a model', location=("model",))
    match path:
        case [organization, name, page, *revision] if page in _PAGES and revision:
            # Names of branches may contain slashes, but the rest of other pages is the path of a file.
            return f"{organization}/{name}", "/".join(revision) if page == "tree" else revision[0]
        case [organization, name, *_]:
            return f"{organization}/{name}", "main"
    raise InvalidRequest(
        f'"{text[:_MAX_LENGTH]}" names no repository; use ORG/NAME or https://huggingface.co/ORG/NAME',
        location=("model",),
    )
