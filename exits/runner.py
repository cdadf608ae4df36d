"""Running a chain of ONNX files by a policy: NumPy and onnxruntime alone, for the device itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from exits.policies import from_json

# N examples, E exits, K classes

DESCRIPTION = "chain.json"


class Answer(NamedTuple):
    """What a chain says of one example."""

    logits: np.ndarray  # [K], of the exit at which it left
    exit: int  # counted from 0


class Chain:
    """The network that `exits.export_chain` wrote to a folder: `chain(image)`, of an example [1, ...], or
    `chain(tokens)`, of a text [1, T] as long as it is.

    It holds no state between calls, and may be called from several threads. ValueError if the folder holds no chain.
    """

    def __init__(self, folder: str | Path, threads: int = 0) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("a chain of ONNX files runs by onnxruntime: pip install onnxruntime") from error
        path = Path(folder) / DESCRIPTION
        try:
            content = json.loads(path.read_text())
            files, self.policy = [path.parent / file for file in content["files"]], from_json(content["policy"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} describes no chain of ONNX files: {error}") from error
        if not files:
            raise ValueError(f"{path} describes no chain of ONNX files: it names none")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self._sessions = [
                onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]) for file in files
            ]
        except Exception as error:  # of classes of its own, which have no other in common
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"a file of {path} cannot be run: {reason}") from error

    def __call__(self, example: np.ndarray) -> Answer:
        if len(example) != 1:
            raise ValueError(f"examples go through one by one, [1, ...], not {list(example.shape)}: each may leave")
        carried, seen = example, []
        for exit, session in enumerate(self._sessions):
            logits, *rest = session.run(None, {"input": carried})
            seen.append(logits)
            is_last = exit == len(self._sessions) - 1
            if is_last or (self.policy is not None and self.policy.stops(np.stack(seen, axis=1))[0, -1]):
                return Answer(logits[0], exit)
            (carried,) = rest
        raise AssertionError("the last part ends every chain")
