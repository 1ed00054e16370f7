"""Metadata from the Hugging Face Hub, through huggingface_hub: revisions, file lists, search."""

from collections.abc import Callable
from typing import Any, TypeVar

import httpx2
from huggingface_hub import HfApi, ModelInfo, set_client_factory
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

from osaurusd.downloads import messages
from osaurusd.downloads.worker.client import create_client
from osaurusd.downloads.worker.errors import PullError, TransientError, certificate_error, describe_failure
from osaurusd.downloads.worker.selection import HubFile, Listing
from osaurusd.models import metadata
from osaurusd.wire.errors import ErrorCode

T = TypeVar("T")

_TIMEOUT_SECONDS = 30.0

# Bytes per value of the safetensors data types.
_DTYPE_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}

_IMAGE_TASK = "image-text-to-text"

TAGS = {"generate": "mlx", "embed": "sentence-transformers", "rerank": "text-ranking"}
"""The tag on the hub of the models for a task. Encoders need no conversion to MLX."""


def list_files(repo: str, revision: str) -> Listing:
    """List a repository's files at the current commit of a branch, tag or commit. Blocking.

    Raises:
        PullError: the repository or revision does not exist, or access is denied.
        TransientError: the hub is unreachable or failed.
    """

    def request() -> Listing:
        api = HfApi()
        info = api.model_info(repo, revision=revision, timeout=_TIMEOUT_SECONDS)
        entries = api.list_repo_tree(repo, recursive=True, revision=info.sha)
        files = [_hub_file(entry) for entry in entries if isinstance(entry, RepoFile)]
        # Correct the case of the name; a renamed repository keeps the name by which other tools request it.
        name = info.id if info.id.lower() == repo.lower() else repo
        return Listing(name, info.sha or "", files)

    return _call_hub(request, repo, revision)


def search(query: str, task: str, author: str | None, limit: int) -> list[messages.HubModel]:
    """Search for models for a task, sorted by downloads. Blocking.

    Raises:
        PullError: the hub rejected the search.
        TransientError: the hub is unreachable or failed.
    """

    def request() -> list[messages.HubModel]:
        infos = HfApi().list_models(
            search=query or None,
            author=author,
            filter=TAGS[task],
            sort="downloads",
            limit=limit,
            expand=["config", "downloads", "gated", "pipeline_tag", "safetensors"],
        )
        return [_hub_model(info) for info in infos]

    return _call_hub(request, "search", "main")


def _hub_file(entry: RepoFile) -> HubFile:
    return HubFile(
        name=entry.path,
        size=entry.size,
        blob_id=entry.blob_id,
        sha256=entry.lfs.sha256 if entry.lfs else None,
        xet_hash=entry.xet_hash,
    )


def _hub_model(info: ModelInfo) -> messages.HubModel:
    counts = info.safetensors.parameters if info.safetensors else {}
    return messages.HubModel(
        repo=info.id,
        bytes=sum(count * _DTYPE_BYTES.get(dtype, 1) for dtype, count in counts.items()) or None,
        parameters=info.safetensors.total if info.safetensors else None,
        downloads=info.downloads,
        gated=bool(info.gated),
        architecture=metadata.architecture(info.config or {}),
        takes_images=info.pipeline_tag == _IMAGE_TASK,
    )


def _call_hub(request: Callable[[], T], subject: str, revision: str) -> T:
    """Return the result of `request`; translate its exceptions.

    Args:
        request: calls the hub.
        subject: the repository, for error messages.
        revision: the revision, for error messages.
    """
    set_client_factory(create_client)
    try:
        return request()
    except GatedRepoError as error:
        raise PullError(
            f"{subject} is gated: accept its terms on its page on the hub, then pull again with a token in HF_TOKEN or "
            "after `hf auth login`",
            ErrorCode.FORBIDDEN,
        ) from error
    except DisabledRepoError as error:
        raise PullError(f"{subject} is disabled on the hub", ErrorCode.FORBIDDEN) from error
    except RepositoryNotFoundError as error:
        raise PullError(
            f"{subject} does not exist on the hub, or it is private; private models need a token in HF_TOKEN",
            ErrorCode.MODEL_NOT_FOUND,
        ) from error
    except RevisionNotFoundError as error:
        raise PullError(f'{subject} has no revision "{revision}"', ErrorCode.MODEL_NOT_FOUND) from error
    except HFValidationError as error:
        raise PullError(f"{subject}: {error}", ErrorCode.INVALID_REQUEST) from error
    except OfflineModeIsEnabled as error:
        raise PullError("the hub is disabled by HF_HUB_OFFLINE; unset it and restart the daemon") from error
    except HfHubHTTPError as error:
        raise _status_error(error, subject) from error
    except httpx2.TransportError as error:
        unreachable = TransientError(f"{subject}: the hub is unreachable: {describe_failure(error)}")
        raise certificate_error(error) or unreachable from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        # What huggingface_hub raises for responses that it does not expect.
        raise TransientError(f"{subject}: the hub sent an invalid response: {error}") from error


def _status_error(error: Any, subject: str) -> Exception:
    status = error.response.status_code
    message = f"{subject}: the hub responded with status {status}"
    if status in (401, 403):
        return PullError(f"{message}; check the token", ErrorCode.FORBIDDEN)
    if status in (408, 425, 429) or status >= 500:
        after = error.response.headers.get("retry-after", "")
        return TransientError(message, float(after) if after.isdecimal() else None)
    return PullError(message)
