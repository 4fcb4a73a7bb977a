"""Memory that knows whether it has changed.

A backward pass multiplies by arrays that the forward pass saved. If one of them was changed in between, the
gradient would be silently wrong, so the engine must notice. Two kinds of writers exist:

- Writers who say so. Optimizers and initialisers go through `Tensor.mutate`, which raises the storage's
  *version*. A saved array remembers the version it was saved at; reading it later compares the two numbers.
- Writers who don't: anyone holding the ndarray that `Tensor.data` handed out. `data` hands out a *handle*, a
  view whose lifetime can be watched. Only while a handle and a saved array exist together (the *lease*) can such a
  write do harm, and only then is the memory fingerprinted, to be compared when the saved array is used.

So nobody changes a saved array unseen, through any view, and whoever never touches `data` pays nothing.
"""

from __future__ import annotations

import weakref
import zlib
from typing import Any

import numpy as np

__all__ = ["Saved", "Storage"]


class _Foreign:
    """Exports an array's memory as if it came from outside NumPy: views of a handle then keep the handle alive."""

    def __init__(self, array: np.ndarray) -> None:
        self.__array_interface__ = array.__array_interface__
        self.owner = array


class _Lease:
    """Lives exactly as long as some saved array of one storage at one version does."""

    __slots__ = ("__weakref__", "fingerprint")

    def __init__(self) -> None:
        self.fingerprint: int | None = None


def _no_lease() -> None:
    return None


class Storage:
    """One piece of memory, shared by a tensor and all tensors that are views of it."""

    __slots__ = ("_handles", "_lease", "root", "version")

    def __init__(self, root: np.ndarray) -> None:
        self.root = root
        self.version = 0
        self._lease: Any = _no_lease
        self._handles: tuple[weakref.ref, ...] = ()

    def expose(self, array: np.ndarray) -> np.ndarray:
        """A view of `array` (a part of this storage) to hand to the user."""
        handle = np.asarray(_Foreign(array))
        self._handles = (*(h for h in self._handles if h() is not None), weakref.ref(handle))
        lease = self._lease()
        if lease is not None and lease.fingerprint is None:
            lease.fingerprint = self._fingerprint()
        return handle

    @property
    def exposed(self) -> bool:
        """Whether somebody holds a view and may write to it at any time."""
        return bool(self._handles) and any(handle() is not None for handle in self._handles)

    def lease(self) -> _Lease:
        """What a saved array holds on to; see the head of this file."""
        lease = self._lease()
        if lease is not None and not self.untouched_since(lease):
            self.changed()  # unannounced: what was saved before is stale, what is saved now is not
            lease = None
        if lease is None:
            lease = _Lease()
            self._lease = weakref.ref(lease)
        if lease.fingerprint is None and self.exposed:
            lease.fingerprint = self._fingerprint()
        return lease

    def changed(self) -> None:
        """Someone wrote, and said so."""
        self.version += 1
        self._lease = _no_lease

    def untouched_since(self, lease: _Lease) -> bool:
        return lease.fingerprint is None or lease.fingerprint == self._fingerprint()

    def _fingerprint(self) -> int:
        return zlib.crc32(np.ascontiguousarray(self.root).reshape(-1).view(np.uint8).data)


class Saved:
    """An array kept for the backward pass, with what is needed to see that it is still what it was."""

    __slots__ = ("_array", "_lease", "_storage", "_version")

    def __init__(self, array: np.ndarray, storage: Storage) -> None:
        self._array = array
        self._storage = storage
        self._lease = storage.lease()  # may notice a change, and count it
        self._version = storage.version

    def unpack(self, name: str, op_name: str) -> np.ndarray:
        """The array, if nobody has written to it since it was saved; RuntimeError otherwise."""
        if self._storage.version != self._version or not self._storage.untouched_since(self._lease):
            raise RuntimeError(
                f"`{name}` of shape {self._array.shape}, saved by `{op_name}` for its backward pass, was changed in "
                f"place afterwards, so its gradient can no longer be computed. Expected the array as it was in the "
                f"forward pass; write into a copy (`x.clone()`), or change it after `backward()`."
            )
        return self._array
