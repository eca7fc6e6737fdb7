"""Non-tensor data that can be stored, and data that cannot, with the reason in the warning."""

from __future__ import annotations

import numpy as np

CHAT = [{"role": "user", "content": "größer?"}, {"role": "assistant", "content": None, "calls": [{"id": 1, "at": 0.5}]}]
INFO = {"lives": 3, "done": False, "scores": [1, 2.5, -0.0], "text": "{}", "nested": {"": []}, "nothing": None}
STORABLE = {
    "text": "a",
    "no text": "",
    "text that looks like JSON": '{"a": 1}',
    "text that looks like a number": "5",
    "characters": "nul \0, line\n, 𝄞, ü",
    "a lone surrogate": "\ud83d",
    "lone surrogates in a list": ["\ud83d", "ü"],
    "none": None,
    "true": True,
    "zero": 0,
    "a large integer": 2**80,
    "a float": 0.1,
    "not a number": float("nan"),
    "infinity": float("-inf"),
    "negative zero": -0.0,
    "bytes": b"\x00\xff",
    "no bytes": b"",
    "a chat": CHAT,
    "info": INFO,
    "an empty list": [],
    "an empty dict": {},
    "a NumPy float": np.float32(0.1),
    "a NumPy integer": np.int64(2**62),
    "a NumPy bool": np.bool_(True),
    "a NumPy text": np.str_("ü"),
    "an array": np.arange(6.0).reshape(2, 3),
    "an array of one number": np.array(5),
    "an array without numbers": np.zeros((2, 0, 3), np.float16),
    "booleans": np.array([[True, False]]),
    "complex numbers": np.array([1 + 2j, 3], np.complex64),
    "an array in columns": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
}


class Thing:
    shape = "odd"


LOST = {
    "a tuple": ((1, 2), "tuple"),
    "a tuple in a list": ([(1, 2)], "tuple within a list or dict"),
    "integer keys": ({1: 2}, "dict whose keys are not all strings"),
    "an instance": (Thing(), "Thing"),
    "a set": ({1}, "set"),
    "a complex number": (1j, "complex"),
    "bytes in a list": ([b"x"], "bytes within a list or dict"),
    "a NumPy number in a dict": ({"x": np.float32(1)}, "float32 within a list or dict"),
    "surrogates that are a pair": ("\ud83d\ude00", "str that JSON would change"),
    "an integer too long for Python's own JSON": (10**5000, "int: Exceeds the limit"),
    "an array of texts": (np.array(["a"]), "array of <U1"),
    "an array of objects": (np.array([None]), "array of object"),
    "a date": (np.datetime64("2026-01-01"), "NumPy's datetime64"),
}
