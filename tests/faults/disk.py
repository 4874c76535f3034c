"""A small file system in memory, whose room, inodes and permission to write change while it is used."""

import os
import subprocess
from pathlib import Path

PAGE = 4096
PLENTY = {"size": 2**27, "nr_inodes": 10**5}


class Disk:
    """A tmpfs; use as a context manager. `CalledProcessError` if this process may not mount."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> "Disk":
        self.folder.mkdir(exist_ok=True)
        options = ",".join(f"{key}={value}" for key, value in PLENTY.items())
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.folder], check=True)
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", self.folder], check=True)

    def leave(self, pages: int) -> None:
        """Only so many pages of 4 KiB stay free."""
        found = os.statvfs(self.folder)
        self._remount(size=(found.f_blocks - found.f_bfree + pages) * PAGE)

    def leave_files(self, count: int) -> None:
        """Only so many more files and folders can be made."""
        found = os.statvfs(self.folder)
        self._remount(nr_inodes=found.f_files - found.f_ffree + count)

    def mend(self) -> None:
        """There is plenty of room again, and it can be written."""
        subprocess.run(["mount", "-o", "remount,rw", self.folder], check=True)
        self._remount(**PLENTY)

    def forbid(self) -> None:
        """Nothing can be written; fails while a file is open for writing."""
        subprocess.run(["mount", "-o", "remount,ro", self.folder], check=True)

    def _remount(self, **options: int) -> None:
        joined = ",".join(["remount", *(f"{key}={value}" for key, value in options.items())])
        subprocess.run(["mount", "-o", joined, self.folder], check=True)
