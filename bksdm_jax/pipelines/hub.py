"""A pipeline by its id on the Hugging Face hub: the files that are needed, through the hub's own cache."""

import glob
import re
from collections.abc import Callable, Collection
from pathlib import Path

import httpx
from absl import logging
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from bksdm_jax.base.errors import InputError, in_short

_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form `owner/name` and isn't a path: there is no folder `owner` here."""
    return _ID.fullmatch(name) is not None and not Path(name).parent.exists()


def hub_folder(repo: str, revision: str, wanted: Callable[[Collection[str]], Collection[str]]) -> Path:
    """The folder in the hub's cache that holds a repository's files, fetched unless they are there.

    Where the hub can't be reached, or `HF_HUB_OFFLINE` is set, what the cache has is taken.

    Args:
        repo: `owner/name`.
        revision: branch, tag or commit; empty: the default branch.
        wanted: all file names of the repository -> those that are needed.

    Raises:
        InputError: no such repository or revision, no access to it, or neither hub nor cache has it.
    """
    where = f"{repo}{f' at revision {revision}' if revision else ''}"
    try:
        if not constants.HF_HUB_OFFLINE:
            names = wanted(HfApi().list_repo_files(repo, revision=revision or None))
            patterns = [glob.escape(name) for name in names]
            return Path(snapshot_download(repo, revision=revision or None, allow_patterns=patterns))
    except GatedRepoError as error:
        raise InputError(
            f"{where}: its licence must be accepted on the hub; do so on its page, then run `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(f"{where}: the hub has no such revision") from error
    except HFValidationError as error:
        raise InputError(f"{repo}: neither a folder here nor a valid id on the hub ({in_short(error)})") from error
    except RepositoryNotFoundError as error:
        raise InputError(f"{repo}: neither a folder here nor a public model on the hub") from error
    except (HfHubHTTPError, httpx.HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        logging.warning("%s: the hub can't be reached (%s); using its cache", repo, in_short(error))
    try:
        return Path(snapshot_download(repo, revision=revision or None, local_files_only=True))
    except IncompleteSnapshotError as error:  # files that no pipeline needs are missing, or its reader will name them
        return Path(error.snapshot_path)
    except (LocalEntryNotFoundError, FileNotFoundError) as error:
        raise InputError(
            f"{where}: no such folder here, not in the hub's cache, and the hub can't be reached; "
            "fetch it where there is a network (`hf download`), or name a folder"
        ) from error
