"""Compare the library's reader with Rerun's own reader on each file that a test reads back."""

from __future__ import annotations

import json
from pathlib import Path

import rerun as rr

import readback
from readback import Recorded, Rows, same
from torchrl_rerun.blocks.black_box import box_of
from torchrl_rerun.kinds.schema import Schema
from torchrl_rerun.reading.history import History
from torchrl_rerun.reading.recordings import OpenedRecording
from torchrl_rerun.reading.tensordicts import as_tensor
from torchrl_rerun.rrd.reader import parts_in


def the_library_agrees(path: Path, found: Recorded) -> None:
    """Compare the values of a recording with those that the library's own reader gives."""
    schema = found.schema
    if not schema or box_of(path).is_dir():  # what is in a black box, only the library reads
        return
    recording = OpenedRecording(parts_in(path))
    assert recording.schema == Schema.from_json(json.dumps(schema))
    for env in schema["envs"]:
        history = History(recording, env)
        for stream, _ in recording.schema.described:
            prefix = [] if schema["split"] == "episode" else [f"env_{env}"]
            paths = [
                rr.new_entity_path([*prefix, *(stream.place or stream.key), *([agent] if agent else [])])
                for agent in stream.agents or [None]
            ]
            lanes = [found.entities.get(each, Rows()) for each in paths]
            rows = history.rows(stream)
            values = as_tensor(stream, rows.values)
            assert len(values) == len(lanes[0].values), (path, stream.key)
            for row, value in enumerate(values):
                expected = [lane.values[row] for lane in lanes]
                for lane, each in enumerate(expected):
                    one = value[lane] if stream.agents else value
                    is_frame = getattr(stream.kind, "takes_newest", False)
                    assert same(one.reshape(each.shape) if is_frame else one, each), (path, stream.key, row)


readback.checks.append(the_library_agrees)
