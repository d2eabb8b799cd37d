"""Checkpoints: what a stopped run continues from, and what a finished one exports."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from .ranks import Ranks

FORMAT = 2
"""Of what a checkpoint holds. Those of format 1 do not say so, and name their parts otherwise."""


def save(path: Path, state: dict[str, Any], ranks: Ranks) -> None:
    """Writes a checkpoint whole or not at all; of several processes the first does, and the others wait for it."""
    if ranks.first:
        partial = path.with_suffix(".partial")
        torch.save({"format": FORMAT} | state, partial)
        os.replace(partial, path)
    ranks.barrier()


def restore(path: Path) -> dict[str, Any] | None:
    """What `save` wrote, its tensors in the processor's memory, or nothing where there is no such file."""
    if not path.exists():
        return None
    try:
        # Nothing but tensors, numbers, strings, lists and tables: a file from elsewhere runs no code.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is no checkpoint of this kit, or is damaged: {' '.join(str(error).split())[:200]}") from error
    found = state.get("format", 1) if isinstance(state, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"{path} is a checkpoint of format {found}, expected {FORMAT}: another version of this kit wrote it; export it with"
            " that version, or train anew in another folder"
        )
    return state
