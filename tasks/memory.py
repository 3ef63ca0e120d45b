"""Peak memory of a worker, from sizes alone: what a plan asks of the machine before anything runs.

Resident memory above that of the interpreter with all packages imported; pages of memory-mapped operators
count. Held against measured peaks in `tests/unit/tasks/test_memory.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hpcenc.storage.layout import SHARD_VOXELS
from hpcenc.tasks.at_hand import BUDGET_BYTES, SUB_BLOCK
from hpcenc.tasks.averaging import AverageBlock
from hpcenc.tasks.cv_forms import MAX_COARSE, N_HEAD
from hpcenc.tasks.extraction import ExtractChunk, ImportFeatures
from hpcenc.tasks.fitting import FitBlock
from hpcenc.tasks.forms import packed_size
from hpcenc.tasks.operator_task import MakeOperators
from hpcenc.tasks.plan import Plan
from hpcenc.tasks.shared_alpha import ShareAlphas
from hpcenc.tasks.sizes import FitSizes, FoldSizes, operator_sizes
from hpcenc.tasks.thin import PANEL

INTERPRETER_BYTES = 400_000_000
"""A worker with Dask and the packages of NumPy fits, before its first task: 310 MB, and some room."""

LIBRARY_BYTES = 350_000_000
"""PyTorch, or another array library than NumPy, beside them: 340 MB."""

EXTRACT_BYTES = 2_600_000_000
"""PyTorch, a model and its activations: an allowance, not a formula."""

DECODE_BYTES = 500_000_000
"""Frames of a movie chunk and the decoder's buffers: an allowance too."""

FILE_COPIES = 5
"""Copies of a feature file's values in float32, while it is read as float64, checked and written."""

SHARD_COPIES = 3.5
"""Copies that Zarr makes of a shard while it writes it: inner chunks, their checksums, the file."""

SLOT_BYTES = 10_000_000
"""What a task slot takes whatever the sizes: buffers of the libraries, small arrays."""


@dataclass(frozen=True)
class WorkerPeak:
    """What one worker needs at most.

    Attributes
    ----------
    n_bytes : int
        Its interpreter included.
    stage, task : str
        Which needs most.
    """

    n_bytes: int
    stage: str
    task: str


def worker_peak(plan: Plan, store: Path, overlaps: bool, worker: str | None = None) -> WorkerPeak:
    """What a worker needs at most for what is left of a plan.

    Parameters
    ----------
    overlaps : bool
        Whether a worker has as many tasks at a time as a stage says, or one.
    worker : {"cpu", "gpu"}, optional
        Only for the stages that want such workers.
    """
    operators = operator_sizes(plan)
    arrays = {spec.group: spec.arrays.values() for spec in plan.groups}
    largest, known = WorkerPeak(INTERPRETER_BYTES, "", ""), dict[FitSizes, int]()
    for stage in plan.pending(store):
        for task in stage.tasks if worker in (None, stage.worker) else ():
            if isinstance(task, FitBlock):
                sizes = FitSizes.of(task, operators)
                if sizes not in known:  # most subjects have the same
                    known[sizes] = fit_peak(sizes, stage.slots if overlaps else 1)
                peak = known[sizes] + (LIBRARY_BYTES if sizes.copies else 0)
            elif isinstance(task, MakeOperators):
                peak = operators_peak(operators[task.unit.group])
            elif isinstance(task, AverageBlock):
                peak = average_peak(task)
            elif isinstance(task, ShareAlphas):
                peak = shared_alphas_peak(task, operators) + (LIBRARY_BYTES if task.backend != "numpy" else 0)
            elif isinstance(task, ImportFeatures):
                peak = FILE_COPIES * sum(array.n_bytes for array in arrays[task.unit.group])
            else:
                peak = EXTRACT_BYTES if isinstance(task, ExtractChunk) else DECODE_BYTES
            if INTERPRETER_BYTES + peak > largest.n_bytes:
                largest = WorkerPeak(INTERPRETER_BYTES + peak, stage.name, task.key)
    return largest


def average_peak(task: AverageBlock) -> int:
    """Peak of averaging one voxel block over subjects: sums of a run, and one subject's as it is prepared."""
    n_voxels = task.voxels[1] - task.voxels[0]
    longest_run = max(run.rows.n_trs for run in task.runs)
    return SLOT_BYTES + longest_run * n_voxels * (8 * 4 + 4 * 2)


def shared_alphas_peak(task: ShareAlphas, operators: dict[str, FoldSizes]) -> int:
    """Peak of choosing the alphas that all voxels of a subject share."""
    n_voxels = max(stop - first for first, stop in task.blocks)
    sizes = [operators[unit.group] for each in task.sets for unit in each.needs if unit.group in operators]
    n_train = max(each.n_train for each in sizes)
    block = 4 * n_voxels * (task.bold.n_trs + 2 * n_train)
    # Second moments and their eigenvectors in float64; courses of each outer fold.
    n_folds = len(task.sets[0].variants[0].operators)
    moments = 8 * 4 * n_train**2 + 4 * n_folds * n_train**2
    choosing = 4 * SUB_BLOCK * 4 * n_train + 4 * n_train * max(map(_predictions, sizes))
    return SLOT_BYTES + max(each.operator_bytes for each in sizes) + block + moments + choosing


def operators_peak(sizes: FoldSizes) -> int:
    """Peak of making the operators of one outer fold."""
    n, n_trs, n_head = sizes.n_train, sizes.n_trs, min(N_HEAD, sizes.n_train)
    # The kernel of all rows, the same centred on the training rows, and features; in float64.
    n_bytes = SLOT_BYTES + 8 * (n_trs**2 + n_trs * n + n_trs * max(sizes.widths))
    if sizes.solver == "fast":
        # Of all alphas rests, duals, products with the head; and what one of them passes by.
        forms = sizes.n_alphas * (packed_size(n) + n**2 + n * n_head)
        forms += sizes.n_alphas * sum(n_val**2 for n_val in sizes.n_val) if sizes.nested else 0
        return n_bytes + 8 * n**2 + 4 * (forms + 10 * n**2 + MAX_COARSE * packed_size(n))
    # An eigendecomposition takes four of its matrix; an inner fold's operator is made in float64, then cast.
    largest = 8 * 4 * n**2
    rank = sizes.rank(n)
    for n_val in sizes.n_val:
        n_inner = n - n_val
        if sizes.thin:
            largest = max(largest, 8 * rank * (3 * n + (6 + 2 * sizes.n_basis) * rank))
            continue
        operator = 12 * sizes.rank(n_inner) * sizes.n_basis * n_val
        largest = max(largest, 8 * (n**2 + n_trs * n_inner + n_inner**2) + operator)
    return n_bytes + largest + sizes.operator_bytes


def fit_peak(sizes: FitSizes, n_slots: int = 1) -> int:
    """Peak of a worker that fits blocks of one size.

    Parameters
    ----------
    n_slots : int
        Tasks that it has at a time. They take turns at computing; while one computes, each other may have
        read its block, or be writing a shard.
    """
    in_turn, beside = 0, 0
    for weights, folds, kept in sizes.units:
        for fold in folds:
            in_turn = max(in_turn, _solve_bytes(sizes, fold, keeps=fold in kept or fold.n_bands > 0))
            if sizes.copies:  # mapped, and copied
                in_turn = max(in_turn, 4 * sizes.n_voxels * sizes.n_trs + fold.operator_bytes)
        for fold in kept:
            making, writing = _weights_bytes(sizes, fold, weights)
            in_turn, beside = max(in_turn, making, writing), max(beside, writing)
    beside = max(beside, _read_bytes(sizes))
    return _at_hand_bytes(sizes) + n_slots * SLOT_BYTES + max(in_turn, beside) + (n_slots - 1) * beside


def _at_hand_bytes(sizes: FitSizes) -> int:
    """Operators and transformed features that a worker keeps."""
    each = []
    for weights, folds, kept in sizes.units:
        each += [fold.operator_bytes for fold in folds]
        if weights == "primal":
            each += [4 * fold.lag.n_values(fold.n_features) for fold in kept]
    return min(sum(each), max(BUDGET_BYTES, max(each)))


def _read_bytes(sizes: FitSizes) -> int:
    """A block of BOLD, and its longest run as it is in the file and turned."""
    return 4 * sizes.n_voxels * (sizes.n_trs + 2 * sizes.longest_run)


def _solve_bytes(sizes: FitSizes, fold: FoldSizes, keeps: bool) -> int:
    """BOLD, z-scored training and test rows, predictions, dual coefficients in the making."""
    bold = sizes.n_trs * (2 if sizes.copies else 1) + fold.n_train + 2 * fold.n_test
    # Those of fitted voxels, among all voxels, and with NaN for the others.
    at_end = bold + (3 if keeps else 2 if fold.solver == "fast" else 0) * fold.n_train
    if fold.nested and fold.solver == "fast":
        at_end += fold.n_train  # dual coefficients in the order of alphas
    if fold.solver == "fast":
        # Deviations of coarse scores, of all voxels at once, in float64.
        choosing = bold + 4 * (fold.n_alphas**2 + N_HEAD) + fold.n_train
        return 4 * (sizes.n_voxels * max(at_end, choosing) + SUB_BLOCK * 4 * fold.n_train)
    n_inner = fold.n_train - min(fold.n_val)
    choosing = sizes.n_voxels * (bold + (fold.n_train if keeps else 0))
    choosing += SUB_BLOCK * 3 * (n_inner + _predictions(fold))
    return 4 * max(sizes.n_voxels * at_end, choosing)


def _predictions(fold: FoldSizes) -> int:
    """Values a voxel of what one inner fold's scores come from, in the exact solver."""
    if fold.thin:
        return (len(fold.n_val) + 3) * fold.rank(fold.n_train) + fold.n_basis * PANEL
    return fold.n_basis * max(fold.n_val)


def _weights_bytes(sizes: FitSizes, fold: FoldSizes, weights: str) -> tuple[int, int]:
    """Of making the weights of a shard, and of writing them while the next ones are made."""
    held = 4 * sizes.n_voxels * (sizes.n_trs + fold.n_train)
    n_rows = sizes.n_trs if weights == "dual" else fold.n_columns
    shard = 4 * n_rows * min(SHARD_VOXELS, sizes.n_voxels)
    # Features are z-scored in float64, and cut into windows, when they are first needed.
    features = 0 if weights == "dual" else 8 * 4 * sizes.n_trs * max(fold.widths)
    copies = 2 if len(fold.widths) > 1 else 1
    next_shard = copies * shard if sizes.n_voxels > SHARD_VOXELS else 0
    return held + max(features, copies * shard), held + int((1 + SHARD_COPIES) * shard) + next_shard
