"""An accelerator for machines that have none."""

from __future__ import annotations

import threading
from collections import deque

import torch

from torchrl_rerun.blocks import devices


class Arriving:
    """The arrival of all values up to a number. Several threads may wait for it."""

    def __init__(self, transfers, number):
        self._transfers = transfers
        self._number = number

    def synchronize(self):
        LateTransfers.waited += 1
        self._transfers.arrive(self._number)


class LateTransfers:
    """A fake accelerator that is as slow as possible: values arrive when they are waited for, once, and in order."""

    begun = waited = 0
    are_kept = True

    def __init__(self, device):
        self._lock = threading.Lock()
        self._pending = deque()  # of (number, target, value)
        self._sent = 0
        self._added = []

    @staticmethod
    def allocate(shape, dtype):
        return torch.zeros(shape, dtype=getattr(torch, dtype))

    def add(self, target, value, copy=None):
        self._added.append((target, value, copy))

    def send(self, *, is_late=False):
        LateTransfers.begun += len(self._added)
        with self._lock:
            for target, value, _ in self._added:
                self._sent += 1
                self._pending.append((self._sent, target, value.detach().clone()))
            arriving = Arriving(self, self._sent)
        copies = [copy for _, _, copy in self._added if copy is not None]
        self.forget()
        return devices.Landing(arriving, copies) if copies and self.are_kept else None

    def forget(self):
        self._added = []

    def arrivals(self):
        with self._lock:
            return [Arriving(self, self._sent)]

    def arrive(self, number):
        with self._lock:
            while self._pending and self._pending[0][0] <= number:
                _, target, value = self._pending.popleft()
                assert (target.dtype, target.shape) == (value.dtype, value.shape)
                target.copy_(value)
