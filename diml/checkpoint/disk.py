"""A directory of versions on a disk: what one rank writes, finds, and deletes there.

Owns which files may be deleted. `shard` owns the files of one version. Must not know MPI, threads,
nor when a version is written. Invariant: what is deleted is older than the versions that the
caller names as whole, and belongs to this job.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from diml.checkpoint.codec import Bytes
from diml.checkpoint.manifest import Found, Identity, Manifest, Order
from diml.checkpoint.shard import (
    check_file,
    data_path,
    folder_order,
    manifest_path,
    read_manifest,
    read_piece,
    write_shard,
)
from diml.errors import CorruptState


class Disk:
    """One process's view of the directory."""

    def __init__(self, directory: Path, run: str) -> None:
        """`run` is the name of this run, the same on all its processes."""
        self._directory, self._run = directory, run
        self._cleared: set[str] = set()

    def write(
        self, manifest: Manifest, states: Mapping[str, Bytes], stay: Sequence[Order] | None
    ) -> None:
        """Write this rank's part, then delete what is older than all of `stay` (None: nothing).

        Raises OSError if the disk refuses to take it. What cannot be deleted stays.
        """
        if states:
            write_shard(self._directory, manifest, states)
        if stay:
            self._remove_old(manifest, stay[0])

    def _remove_old(self, manifest: Manifest, oldest: Order) -> None:
        """Delete this rank's files of versions older than `oldest`."""
        for folder in self._directory.iterdir():
            order = folder_order(folder.name)
            if order is not None and order < oldest:
                # Other ranks delete as well, and may have taken it away.
                with contextlib.suppress(OSError):
                    self._remove(folder, order, manifest)

    def _remove(self, folder: Path, order: Order, manifest: Manifest) -> None:
        if order[2] == self._run:
            # By name: each rank looking through all ranks' files would be quadratic.
            gone = replace(manifest, attempt=order[0], version=order[1])
            for path in (manifest_path(self._directory, gone), data_path(self._directory, gone)):
                path.unlink(missing_ok=True)
                path.with_name("." + path.name).unlink(missing_ok=True)
        elif folder.name not in self._cleared:
            _clear(folder, manifest.rank, manifest.size, manifest.identity)
            self._cleared.add(folder.name)
        folder.rmdir()

    def listed(self) -> list[Path]:
        """What there is to look at: manifests, and versions' directories that have none."""
        paths: list[Path] = []
        for folder in sorted(self._directory.iterdir()):
            if folder_order(folder.name) is not None and folder.is_dir():
                paths += (sorted(folder.glob("rank-*.json")) if _own(folder) else []) or [folder]
        return paths

    def found(self, path: Path) -> Found:
        """What one of those that `listed` gives is, checked but for the bytes of its states."""
        if (order := folder_order(path.name)) is not None:
            why = "no manifest" if _own(path) else "belongs to another user"
            return Found(order, None, f"{path}: {why}")
        order = folder_order(path.parent.name)
        assert order is not None
        manifest = None
        try:
            manifest = read_manifest(path)
            if path != manifest_path(self._directory, manifest):
                raise CorruptState(f"{path}: tells of {manifest.folder}, rank {manifest.rank}")
            check_file(self._directory, manifest)
        except CorruptState as error:
            return Found(order, manifest, str(error))
        return Found(order, manifest)

    def read(self, manifest: Manifest, name: str) -> Bytes:
        """One encoded state, all of it checked. Raises CorruptState, naming the file."""
        return read_piece(data_path(self._directory, manifest), manifest.piece(name))


def _own(folder: Path) -> bool:
    """Whether a directory is this user's, or has just been deleted, as another run may do."""
    try:
        return folder.stat().st_uid == os.geteuid()
    except FileNotFoundError:
        return True


def _clear(folder: Path, rank: int, size: int, identity: Identity) -> None:
    """Delete a rank's share of an earlier run's files, if that run was of this job."""
    for path in sorted(folder.iterdir(), reverse=True):
        # Of a run on more ranks, each present one clears away its share.
        number = path.name.lstrip(".").removeprefix("rank-").partition(".")[0]
        if number.isdigit() and int(number) % size == rank and _ours(path, identity):
            path.unlink(missing_ok=True)


def _ours(path: Path, identity: Identity) -> bool:
    """Whether a file may be deleted: its manifest is this job's, or it has none."""
    manifest = path.with_name(path.name.lstrip(".")).with_suffix(".json")
    if not manifest.exists():
        return True
    with contextlib.suppress(CorruptState):
        return not identity.difference(read_manifest(manifest).identity)
    return False
