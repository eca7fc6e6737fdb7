"""An accelerator for machines that have none."""

from __future__ import annotations

import torch


class LateTransfers:
    """A fake accelerator that is as slow as possible: values arrive when they are waited for."""

    begun = waited = 0

    def __init__(self, device):
        self._pending = []
        self._added = []

    @staticmethod
    def allocate(shape, dtype):
        return torch.zeros(shape, dtype=getattr(torch, dtype))

    def add(self, target, value):
        self._added.append((target, value))

    def send(self, *, is_late=False):
        LateTransfers.begun += len(self._added)
        self._pending += [(target, value.detach().clone()) for target, value in self._added]
        self.forget()

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
