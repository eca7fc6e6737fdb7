"""An accelerator for machines that have none."""

from __future__ import annotations

import torch

from torchrl_rerun.blocks import devices


class Arriving:
    """The arrival of some values of the fake accelerator."""

    def __init__(self, pending):
        self._pending = pending

    def synchronize(self):
        for target, value in self._pending:
            target.copy_(value)


class LateTransfers:
    """A fake accelerator that is as slow as possible: values arrive when they are waited for."""

    begun = waited = 0
    are_kept = True

    def __init__(self, device):
        self._pending = []
        self._added = []

    @staticmethod
    def allocate(shape, dtype):
        return torch.zeros(shape, dtype=getattr(torch, dtype))

    def add(self, target, value, copy=None):
        self._added.append((target, value, copy))

    def send(self, *, is_late=False):
        LateTransfers.begun += len(self._added)
        pending = [(target, value.detach().clone()) for target, value, _ in self._added]
        self._pending += pending
        copies = [copy for _, _, copy in self._added if copy is not None]
        self.forget()
        return devices.Landing(Arriving(pending), copies) if copies and self.are_kept else None

    def forget(self):
        self._added = []

    def arrivals(self):
        return [self]

    def synchronize(self):
        LateTransfers.waited += 1
        for target, value in self._pending:
            assert (target.dtype, target.shape) == (value.dtype, value.shape)
            target.copy_(value)
        self._pending.clear()
