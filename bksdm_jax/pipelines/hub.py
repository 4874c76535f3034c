"""Downloads the needed files of a Hugging Face hub model into the hub's cache."""

import glob
import re
from collections.abc import Callable, Collection
from pathlib import Path

import httpx
from absl import logging
from huggingface_hub import HfApi, constants, errors, snapshot_download

from bksdm_jax.base.errors import InputError, in_short

_UNREACHABLE = (errors.HfHubHTTPError, httpx.HTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)
_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form `owner/name` and there is no folder `owner` here."""
    return _ID.fullmatch(name) is not None and not Path(name).parent.exists()


def hub_folder(repo: str, revision: str, wanted: Callable[[Collection[str]], Collection[str]]) -> Path:
    """The folder of a repository in the hub's cache; missing files are downloaded.

    If the hub can't be reached or `HF_HUB_OFFLINE` is set, the cache is used as it is.

    Args:
        repo: `owner/name`.
        revision: branch, tag or commit; empty: the default branch.
        wanted: all file names of the repository -> the needed ones.

    Raises:
        InputError: no such repository or revision, no access to it, or it can't be downloaded and isn't in the cache.
    """
    where = f"{repo}{f' at revision {revision}' if revision else ''}"
    try:
        if not constants.HF_HUB_OFFLINE:
            names = wanted(HfApi().list_repo_files(repo, revision=revision or None))
            patterns = [glob.escape(name) for name in names]
            return Path(snapshot_download(repo, revision=revision or None, allow_patterns=patterns))
    except errors.GatedRepoError as error:
        raise InputError(
            f"{where}: access requires accepting its licence on its hub page; do so, then run `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{where}: no such revision on the hub") from error
    except errors.HFValidationError as error:
        raise InputError(f"{repo}: neither a local folder nor a valid hub id ({in_short(error)})") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(f"{repo}: neither a local folder nor a public model on the hub") from error
    except _UNREACHABLE as error:
        logging.warning("%s: the hub can't be reached (%s); using its cache", repo, in_short(error))
    try:
        return Path(snapshot_download(repo, revision=revision or None, local_files_only=True))
    except errors.IncompleteSnapshotError as error:  # if a needed file is missing, its reader reports it
        return Path(error.snapshot_path)
    except (errors.LocalEntryNotFoundError, FileNotFoundError) as error:
        raise InputError(
            f"{where}: no such local folder, not in the hub's cache, and the hub can't be reached; "
            "download it where there is a network (`hf download`), or give a folder"
        ) from error
