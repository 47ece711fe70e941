"""The average of the weights of the best evaluations of a run."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from focaldet.weights import read_tensors

Ranking = list[tuple[float, int]]
"""AP and epoch (from 1) of evaluations, the best first; of equal ones the later."""


def rank_evaluation(ranking: Ranking, *, ap: float, epoch: int, most: int) -> Ranking:
    """The ranking with one evaluation more, at most `most` of them; one of the same epoch is replaced."""
    others = [(value, number) for value, number in ranking if number != epoch]
    return sorted([*others, (ap, epoch)], reverse=True)[:most]


def weights_path(folder: Path, epoch: int) -> Path:
    """The file in `folder` with the weights of the evaluation after `epoch`."""
    return folder / f"epoch_{epoch}.safetensors"


def remove_others(folder: Path, ranking: Ranking) -> None:
    """Remove the weights of evaluations that are no longer ranked."""
    ranked = {weights_path(folder, epoch) for _, epoch in ranking}
    for path in folder.glob("epoch_*.safetensors"):
        if path not in ranked:
            path.unlink(missing_ok=True)


def average_files(paths: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of each tensor over weights files of one network; whole numbers are those of the first file."""
    files = [read_tensors(path).tensors for path in paths]
    return {
        name: torch.stack([file[name].double() for file in files]).mean(0).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in files[0].items()
    }
