"""What the hub says of repos, asked through huggingface_hub: revisions, files, search."""

from collections.abc import Callable
from typing import Any, TypeVar

import httpx2
from huggingface_hub import HfApi, ModelInfo
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from osaurusd.downloads.worker.choice import HubFile, Listing
from osaurusd.downloads.worker.failure import PullError, Retry
from osaurusd.rpc import messages
from osaurusd.wire.errors import ErrorCode

T = TypeVar("T")

_TIMEOUT_SECONDS = 30.0

# Bytes a number by the names that safetensors gives its types.
_WIDTHS = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


def files(repo: str, revision: str) -> Listing:
    """The files of a repo at the commit that a branch, tag or commit means now. Blocking.

    Raises:
        PullError: there is no such thing, or it may not be had.
        Retry: the hub does not answer as it should.
    """

    def ask() -> Listing:
        api = HfApi()
        info = api.model_info(repo, revision=revision, timeout=_TIMEOUT_SECONDS)
        entries = api.list_repo_tree(repo, recursive=True, revision=info.sha)
        found = [_file(entry) for entry in entries if isinstance(entry, RepoFile)]
        return Listing(_spelled(repo, info.id), info.sha or "", found)

    return _asked(ask, repo, revision)


def search(words: str, author: str | None, limit: int) -> list[messages.HubModel]:
    """MLX models that go by these words, the most downloaded first. Blocking.

    Raises:
        PullError, Retry: as `files` does.
    """

    def ask() -> list[messages.HubModel]:
        found = HfApi().list_models(
            search=words or None,
            author=author,
            filter="mlx",
            sort="downloads",
            limit=limit,
            expand=["downloads", "gated", "safetensors"],
        )
        return [_model(info) for info in found]

    return _asked(ask, "the search", "main")


def _spelled(asked: str, canonical: str) -> str:
    """The repo's name as the hub spells it. A renamed repo keeps the name by which other tools would ask for it."""
    return canonical if canonical.lower() == asked.lower() else asked


def _file(entry: RepoFile) -> HubFile:
    return HubFile(
        name=entry.path,
        size=entry.size,
        blob_id=entry.blob_id,
        sha256=entry.lfs.sha256 if entry.lfs else None,
        xet_hash=entry.xet_hash,
    )


def _model(info: ModelInfo) -> messages.HubModel:
    counts = info.safetensors.parameters if info.safetensors else {}
    return messages.HubModel(
        repo=info.id,
        bytes=sum(count * _WIDTHS.get(kind, 1) for kind, count in counts.items()) or None,
        parameters=info.safetensors.total if info.safetensors else None,
        downloads=info.downloads,
        gated=bool(info.gated),
    )


def _asked(ask: Callable[[], T], repo: str, revision: str) -> T:
    """What `ask` returns, its failures in our words."""
    try:
        return ask()
    except GatedRepoError as error:
        raise PullError(
            f"{repo}: the hub gives it only to those who have agreed to its terms; agree on its page there, and pull "
            "again with a token in HF_TOKEN or after `hf auth login`",
            ErrorCode.FORBIDDEN,
        ) from error
    except DisabledRepoError as error:
        raise PullError(f"{repo}: the hub has disabled it", ErrorCode.FORBIDDEN) from error
    except RepositoryNotFoundError as error:
        raise PullError(
            f"{repo}: the hub has no such model, or gives it only to those with a token for it (HF_TOKEN)",
            ErrorCode.MODEL_NOT_FOUND,
        ) from error
    except RevisionNotFoundError as error:
        raise PullError(f"{repo}: it has no revision `{revision}`", ErrorCode.MODEL_NOT_FOUND) from error
    except HFValidationError as error:
        raise PullError(f"{repo}: {error}", ErrorCode.INVALID_REQUEST) from error
    except OfflineModeIsEnabled as error:
        raise PullError("HF_HUB_OFFLINE is set, so the hub is not asked") from error
    except HfHubHTTPError as error:
        raise _by_status(error, repo) from error
    except httpx2.TransportError as error:
        raise Retry(f"{repo}: the hub cannot be reached: {error}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Retry(f"{repo}: the hub's answer makes no sense: {error}") from error


def _by_status(error: Any, repo: str) -> Exception:
    status = error.response.status_code
    message = f"{repo}: the hub answers {status}"
    if status in (401, 403):
        return PullError(f"{message}; the token it was given is not good for that", ErrorCode.FORBIDDEN)
    if status in (408, 425, 429) or status >= 500:
        after = error.response.headers.get("retry-after", "")
        return Retry(message, float(after) if after.isdecimal() else None)
    return PullError(message)
