"""The price of a plan: floating-point operations, bytes and hours of what is left to do.

Formulas alone: nothing is opened, so that a login node can tell it. What a fit takes beyond its matrix
products (z-scoring, scores, chance levels) is in `SHARE_OF_PEAK`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcenc.storage.groups import ArraySpec, GroupSpec
from hpcenc.tasks.averaging import AverageBlock
from hpcenc.tasks.cv_forms import HEAD_PANEL, N_HEAD, N_PILOT
from hpcenc.tasks.decoding import chunk_rows
from hpcenc.tasks.extraction import ExtractChunk, needs_audio, needs_frames
from hpcenc.tasks.fitting import N_CHECK, FitBlock
from hpcenc.tasks.forms import packed_size
from hpcenc.tasks.models.catalogue import OFFICIAL_N_LAYERS, SAMPLE_RATE, ModelSpec
from hpcenc.tasks.operator_task import MakeOperators
from hpcenc.tasks.plan import Plan
from hpcenc.tasks.shared_alpha import ShareAlphas
from hpcenc.tasks.sizes import FitSizes, FoldSizes, operator_sizes
from hpcenc.tasks.thin import thin_products

EIGH_FLOP = 9
"""An eigendecomposition of n rows takes about this times n**3 operations in float64."""

SVD_FLOP = 14
"""A singular value decomposition of n rows and p columns takes about this times n * p**2, likewise."""

N_COARSE, N_EXACT = 5.5, 0.6
"""Coarse forms, and exact forms a voxel, of the fast solver on the benchmark problem; known as late."""

SHARE_OF_PEAK = {"operators": 0.65, "fit": 0.8}
"""Rate of whole tasks over that of one matrix product, by stage."""

EXTRACT_CPU_S = {"beats": 1.66, "clip": 0.10, "cavmae": 1.52}
"""CPU seconds a row of full depth with windows of `EXTRACT_WINDOW_S` (docs/benchmarks.md)."""
EXTRACT_WINDOW_S = 10.0

ASSUMED_GFLOPS = 100.0
"""Rate of a worker where none can be measured: on other machines, on a GPU."""


@dataclass(frozen=True)
class Flop:
    """Floating-point operations by precision."""

    single: float = 0.0
    double: float = 0.0

    def __add__(self, other: Flop) -> Flop:
        return Flop(self.single + other.single, self.double + other.double)

    def __mul__(self, times: float) -> Flop:
        return Flop(self.single * times, self.double * times)

    @property
    def total(self) -> float:
        """Of both precisions."""
        return self.single + self.double

    def seconds(self, gflops: float) -> float:
        """Seconds at a rate of products in float32; those in float64 take twice as long."""
        return (self.single + 2 * self.double) / (1e9 * gflops)


def operators_flop(sizes: FoldSizes) -> Flop:
    """Operations of making the operators of one outer fold."""
    n, rank = sizes.n_train, sizes.rank(sizes.n_train)
    double = float(_kernel_flop(sizes) + _basis_flop(sizes, n) + 2 * sizes.n_test * n * rank)
    if sizes.solver == "exact":
        single = 0.0
        for n_val in sizes.n_val:
            n_inner = n - n_val
            if sizes.thin:
                pairs = sizes.n_alphas * (sizes.n_alphas + sizes.n_basis)
                double += 2 * rank**2 * (n + n_val + pairs) + EIGH_FLOP * rank**3
                continue
            inner_rank = sizes.rank(n_inner)
            double += _basis_flop(sizes, n_inner) + 2 * n_val * n_inner * inner_rank
            single += 2 * n_inner * inner_rank * sizes.n_basis * n_val
        return Flop(single, double)
    n_head = _n_head(rank)
    # A smoother; the residuals of each fold and their squares; what the head takes out.
    an_alpha = float(n**2 * rank + 6 * n**2 * n_head)
    for n_val in sizes.n_val:
        double += sizes.n_alphas * n_val**3 * (2 if sizes.nested else 1)
        an_alpha += 2 * n_val**2 * (n - n_val) + n_val * (n - n_val) ** 2
    an_alpha += 2 * packed_size(n) * (N_PILOT + sizes.n_alphas + N_COARSE)
    return Flop(sizes.n_alphas * an_alpha, double)


def alphas_flop(
    sizes: FoldSizes, n_voxels: int, n_coarse: float = N_COARSE, n_exact: float = N_EXACT
) -> Flop:
    """Operations of choosing the alpha of every voxel of a block.

    Parameters
    ----------
    n_coarse, n_exact : float
        Coarse forms, and exact forms a voxel, of the fast solver.
    """
    n, n_alphas = sizes.n_train, sizes.n_alphas
    if sizes.solver == "fast":
        n_head = _n_head(sizes.rank(n))
        head = n * n_head + (n_alphas - 1) * packed_size(n_head, HEAD_PANEL)
        n_forms = min(n_coarse, n_alphas) + n_exact
        checked = min(N_CHECK, n_voxels) / n_voxels
        check = checked * (head + (n_alphas - 1) * packed_size(n))
        return Flop(2 * (head + n_forms * packed_size(n) + check), 2.0 * n_head * n_alphas**2) * n_voxels
    n_basis, cost = sizes.n_basis, Flop()
    for n_val in sizes.n_val:
        if sizes.thin:
            rank = sizes.rank(n)
            products = thin_products(rank, n_val, n_basis, n_alphas)
            cost += Flop(2 * products, 2 * n_alphas * (rank + n_basis))
        else:
            products = (n - n_val) * n_basis * n_val
            grams = n_basis * (n_basis + 1) * n_val
            cost += Flop(2 * (products + grams), 2 * n_alphas * n_basis * (n_basis + 1))
    return cost * n_voxels


def refit_flop(sizes: FoldSizes, n_voxels: int, wants_dual: bool) -> Flop:
    """Operations of the fit with the chosen alphas and of the prediction of the test rows.

    The fast solver's are those of alphas large enough for one product; the few below take twice as many.
    """
    n = sizes.n_train
    if sizes.solver == "fast":
        return Flop(2.0 * n * (n + sizes.n_test)) * n_voxels
    # In the coordinates of the features, the choice has taken the products with the eigenvectors.
    to_basis, back = 0 if sizes.thin else n, n if wants_dual else 0
    return Flop(2.0 * sizes.rank(n) * (to_basis + sizes.n_test + back)) * n_voxels


def nested_flop(sizes: FoldSizes, n_voxels: int) -> Flop:
    """Operations of what only sweeps score: inner folds by the fast solver, and bands."""
    single = 2.0 * sizes.n_bands * sizes.n_test * sizes.n_train
    if sizes.nested and sizes.solver == "fast":
        single += 2 * sum(n_val**2 for n_val in sizes.n_val)
    return Flop(single) * n_voxels


def shared_alphas_flop(task: ShareAlphas, operators: dict[str, FoldSizes]) -> Flop:
    """Operations of choosing the alphas that all voxels of a subject share."""
    sizes = [operators[unit.group] for each in task.sets for unit in each.needs if unit.group in operators]
    n_train = max(each.n_train for each in sizes)
    n_folds = len(task.sets[0].variants[0].operators)
    moments = Flop(2.0 * n_train**2 * task.blocks[-1][1], EIGH_FLOP * n_train**3) * n_folds
    return sum((alphas_flop(each, n_train, n_exact=each.n_alphas) for each in sizes), moments)


def weights_flop(sizes: FoldSizes, n_voxels: int) -> Flop:
    """Operations of the primal weights of all delays."""
    return Flop(float(sum(sizes.lag.flop(width) for width in sizes.widths))) * n_voxels


def extract_cpu_s(spec: ModelSpec) -> float:
    """CPU seconds a row, an estimate from full depth and windows of 10 s."""
    window = spec.window_s / EXTRACT_WINDOW_S if needs_audio(spec) else 1.0
    return EXTRACT_CPU_S[spec.model] * spec.n_layers / OFFICIAL_N_LAYERS * window


@dataclass(frozen=True)
class Price:
    """What is left of a plan costs.

    Attributes
    ----------
    flop : dict of str to Flop
        By stage, those of primal weights apart.
    extract_cpu_s : float
    bytes_read : int
        BOLD once for each subject and block; operators and features once for each block that uses them,
        wherever they then come from. Movies are not counted.
    dual_saves_bytes, dual_saves_flop : int, float
        What dual coefficients would save, of the fits that are to keep primal weights.
    n_primal, n_weights : int
        Of the fits that are not whole yet, those that are to keep primal weights, and weights at all.
    n_tasks : dict of str to int
        By stage.
    """

    flop: dict[str, Flop]
    extract_cpu_s: float
    bytes_read: int
    dual_saves_bytes: int
    dual_saves_flop: float
    n_primal: int
    n_weights: int
    n_tasks: dict[str, int]

    def hours(self, gflops: float, n_workers: int, n_threads: int) -> dict[str, float]:
        """Hours of computing by stage.

        Parameters
        ----------
        gflops : float
            Rate of a worker, with its threads, at a product in float32.
        """
        seconds = {
            "extract": self.extract_cpu_s / n_threads,
            "operators": self.flop["operators"].seconds(gflops * SHARE_OF_PEAK["operators"]),
            "fit": (self.flop["fit"] + self.flop["weights"]).seconds(gflops * SHARE_OF_PEAK["fit"]),
        }
        return {
            stage: spent / max(1, min(n_workers, self.n_tasks[stage])) / 3600
            for stage, spent in seconds.items()
        }


def price_plan(plan: Plan, store: Path) -> Price:
    """Price of what is left of a plan."""
    stages = {stage.name: stage.tasks for stage in plan.pending(store)}
    arrays = {f"{spec.group}/{name}": array for spec in plan.groups for name, array in spec.arrays.items()}
    sizes = operator_sizes(plan)
    flop = {"operators": Flop(), "fit": Flop(), "weights": Flop()}
    extract_s, n_bytes = 0.0, 0

    for task in stages["extract"]:
        if isinstance(task, ExtractChunk):
            rows = chunk_rows(task.unit.index, task.n_trs)
            extract_s += extract_cpu_s(task.spec) * (rows.stop - rows.start)
            n_bytes += _stimulus_bytes(task, arrays)
        else:
            n_bytes += sum(
                arrays[path].n_bytes for path in arrays if path.startswith(f"{task.units[0].group}/")
            )
    for task in stages["operators"]:
        assert isinstance(task, MakeOperators)
        flop["operators"] += operators_flop(sizes[task.unit.group])
        n_bytes += sum(arrays[path].n_bytes for space in task.spaces for run in space.arrays for path in run)
    for task in stages.get("alphas", ()):
        assert isinstance(task, ShareAlphas)
        flop["fit"] += shared_alphas_flop(task, sizes)
        n_bytes += task.blocks[-1][1] * sum(run.n_trs * run.dtype.itemsize for run in task.bold.runs)
    for task in stages.get("average", ()):
        assert isinstance(task, AverageBlock)
        n_values = sum(header.n_trs for run in task.runs for header in run.bold)
        n_bytes += 4 * n_values * (task.voxels[1] - task.voxels[0])
    for task in stages["fit"]:
        assert isinstance(task, FitBlock)
        left = [not fit.unit.done(store) for fit in task.fits]
        block = FitSizes.of(task, sizes)
        n_bytes += sum(run.n_trs * run.dtype.itemsize for run in task.bold.runs) * block.n_voxels
        for (weights, folds, kept), is_left in zip(block.units, left, strict=True):
            if not is_left:
                continue
            fit_flop, of_weights = _unit_flop(weights, folds, kept, block.n_voxels)
            flop["fit"] += fit_flop
            flop["weights"] += of_weights
            n_bytes += sum(fold.operator_bytes for fold in folds)
            if weights == "primal":
                n_bytes += sum(4 * fold.n_trs * fold.n_features for fold in kept)
    with_weights = [spec for spec in plan.groups_to_write(store) if "weights" in spec.arrays]
    primal = [spec for spec in with_weights if spec.attributes["weights"] == "primal"]
    return Price(
        flop=flop,
        extract_cpu_s=extract_s,
        bytes_read=n_bytes,
        dual_saves_bytes=sum(_dual_saves(spec) for spec in primal),
        dual_saves_flop=flop["weights"].total,
        n_primal=len(primal),
        n_weights=len(with_weights),
        n_tasks={name: len(tasks) for name, tasks in stages.items()},
    )


def longest_units(plan: Plan, store: Path, gflops: float, n_threads: int) -> dict[str, tuple[float, str]]:
    """Seconds and name of the longest unit that is left, by stage; of decoding nothing is known.

    Parameters are those of `Price.hours`.
    """
    sizes = operator_sizes(plan)
    found: dict[str, tuple[float, str]] = {}
    for stage in plan.pending(store):
        for task in stage.tasks:
            if isinstance(task, ExtractChunk):
                rows = chunk_rows(task.unit.index, task.n_trs)
                seconds = [extract_cpu_s(task.spec) * (rows.stop - rows.start) / n_threads]
            elif isinstance(task, MakeOperators):
                flop = operators_flop(sizes[task.unit.group])
                seconds = [flop.seconds(gflops * SHARE_OF_PEAK["operators"])]
            elif isinstance(task, FitBlock):
                block = FitSizes.of(task, sizes)
                flops = (sum(_unit_flop(*unit, block.n_voxels), Flop()) for unit in block.units)
                seconds = [flop.seconds(gflops * SHARE_OF_PEAK["fit"]) for flop in flops]
            else:
                continue
            units = [fit.unit for fit in task.fits] if isinstance(task, FitBlock) else task.units
            each = [(spent, str(unit)) for spent, unit in zip(seconds, units, strict=True)]
            found[stage.name] = max([found.get(stage.name, (0.0, "")), *each])
    return found


def _unit_flop(
    weights: str, folds: Sequence[FoldSizes], kept: Sequence[FoldSizes], n_voxels: int
) -> tuple[Flop, Flop]:
    """Operations of one unit of a fit, and of its primal weights."""
    fit, of_weights = Flop(), Flop()
    for fold in folds:
        wants_dual = fold in kept or fold.n_bands > 0
        fit += alphas_flop(fold, n_voxels) + refit_flop(fold, n_voxels, wants_dual)
        fit += nested_flop(fold, n_voxels)
    if weights == "primal":
        for fold in kept:
            of_weights += weights_flop(fold, n_voxels)
    return fit, of_weights


def _stimulus_bytes(task: ExtractChunk, arrays: dict[str, ArraySpec]) -> int:
    rows = chunk_rows(task.unit.index, task.n_trs)
    n_rows, n_bytes = rows.stop - rows.start, 0
    if needs_frames(task.spec):
        n_bytes += n_rows * math.prod(arrays[f"{task.stimulus}/frames"].shape[1:])
    if needs_audio(task.spec):
        n_bytes += round(4 * SAMPLE_RATE * (n_rows * task.spec.tr_s + task.spec.window_s))
    return n_bytes


def _dual_saves(spec: GroupSpec) -> int:
    """Bytes that dual coefficients would take less than the primal weights of a fit."""
    weights, n_trs = spec.arrays["weights"], int(spec.attributes["n_trs"])
    return weights.n_bytes - weights.n_bytes * n_trs // weights.shape[2]


def _kernel_flop(sizes: FoldSizes) -> int:
    """Of the Gram matrices of the spaces, which a thin design does without."""
    return 0 if sizes.from_design else 2 * sizes.n_trs**2 * sizes.n_features


def _basis_flop(sizes: FoldSizes, n_rows: int) -> int:
    """Of the eigenbasis of some rows."""
    return SVD_FLOP * n_rows * sizes.n_columns**2 if sizes.from_design else EIGH_FLOP * n_rows**3


def _n_head(rank: int) -> int:
    return min(N_HEAD, max(1, rank // 3))
