"""Secrets, mounted as the kubelet does."""

from __future__ import annotations

import shutil
from itertools import count
from pathlib import Path


class SecretVolume:
    """A secret in a folder: each file is a link into a folder of data, which is exchanged as a whole when it changes.

    Everybody may write to the folder above (and it is sticky), as in the kubelet's; the mount is read-only.

    Args:
        folder: where it is mounted; it is made.
        mode: of its files, the volume's defaultMode.
        data: the secret, by file names.
    """

    def __init__(self, folder: Path, mode: int, data: dict[str, bytes]) -> None:
        self._versions = count()
        self._mode = mode
        self.folder = folder
        folder.mkdir(parents=True)
        folder.chmod(0o3777)
        self.update(data)
        for name in data:
            (folder / name).symlink_to(f"..data/{name}")

    def update(self, data: dict[str, bytes]) -> None:
        """Takes the content of the changed secret."""
        link = self.folder / "..data"
        old = link.resolve() if link.is_symlink() else None
        new = self.folder / f"..{next(self._versions)}"
        new.mkdir()
        new.chmod(0o2755)
        for name, content in data.items():
            file = new / name
            file.write_bytes(content)
            file.chmod(self._mode)
        draft = self.folder / "..data_tmp"
        draft.symlink_to(new.name)
        draft.replace(link)
        if old:
            shutil.rmtree(old)
