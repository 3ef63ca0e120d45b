"""The part of a plan that fit tasks do beside fitting: noise ceilings, and single features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from hpcenc.storage.digests import digest
from hpcenc.storage.groups import GroupSpec
from hpcenc.storage.layout import ceiling_group, singles_group
from hpcenc.storage.study import Study
from hpcenc.tasks.bold_planner import BoldPlanner, Scanned
from hpcenc.tasks.ceiling import CEILING_VERSION, ceiling_facts, find_showings
from hpcenc.tasks.ceiling_unit import CeilingUnit, ceiling_arrays
from hpcenc.tasks.feature_planner import FeaturePlanner
from hpcenc.tasks.models import catalogue
from hpcenc.tasks.operator_task import Rows
from hpcenc.tasks.records import Unit
from hpcenc.tasks.selection import FeatureSet
from hpcenc.tasks.singles import SINGLES_VERSION, SinglesUnit, singles_arrays


class ExtrasPlanner:
    """Plans what fit tasks make of a block while they have its BOLD at hand.

    Parameters
    ----------
    groups : dict of str to GroupSpec
        Is filled with their groups.
    voxels : str
        Digest of the voxel axis.
    """

    def __init__(
        self,
        study: Study,
        bold: BoldPlanner,
        features: FeaturePlanner,
        groups: dict[str, GroupSpec],
        voxels: str,
    ) -> None:
        self._study, self._bold, self._features, self._groups, self._voxels = (
            study,
            bold,
            features,
            groups,
            voxels,
        )

    def units(
        self, scanned: Scanned, rows: Rows, tag_rows: Rows | None, feature_sets: Sequence[FeatureSet]
    ) -> tuple[CeilingUnit | SinglesUnit, ...]:
        """Units of a subject's first block.

        Parameters
        ----------
        rows, tag_rows : Rows
            Of the main fits, and of single tags; None where the runs cannot be split for these.
        """
        singles = () if tag_rows is None else self._singles(scanned, tag_rows, feature_sets)
        return (*self._ceilings(scanned, rows), *singles)

    def _ceilings(self, scanned: Scanned, rows: Rows) -> Iterator[CeilingUnit]:
        """One, where a clip is shown again."""
        rest_tail = rows.longest_delay if self._study.fit.rest == "drop" else -1
        showings, _ = find_showings(rows.runs, rows.longest_delay, rest_tail)
        if not showings:
            return
        inputs = {
            "version": CEILING_VERSION,
            "bold": scanned.identity,
            "voxels": self._voxels,
            "block": self._study.fit.block,
            "run_names": [run.name for run in rows.runs],
            "runs": [[run.n_trs, run.rest] for run in rows.runs],
            "rest_tail": rest_tail,
            "showings": ceiling_facts(showings),
        }
        group, key = ceiling_group(scanned.subject), digest(inputs)
        arrays = ceiling_arrays(len(showings), self._bold.n_voxels, self._study.fit.block)
        attributes = {**inputs, "subject": scanned.subject}
        self._groups[group] = GroupSpec(group, key, arrays, len(self._bold.blocks), attributes)
        yield CeilingUnit(Unit(group, 0, key), rows.runs, rest_tail, showings)

    def _singles(
        self, scanned: Scanned, rows: Rows, feature_sets: Sequence[FeatureSet]
    ) -> Iterator[SinglesUnit]:
        """One for each feature set of tags alone."""
        fit, sweeps = self._study.fit, self._study.sweeps
        if sweeps.tags is None or scanned.subject not in (sweeps.subjects or (scanned.subject,)):
            return
        for feature_set in feature_sets:
            space = feature_set.spaces[0]
            if feature_set.kind != "fits" or len(feature_set.spaces) > 1 or space.layer != catalogue.TAGS:
                continue
            source, needs, digests = self._features.space(space, scanned.version, scanned.runs)
            inputs = {
                "version": SINGLES_VERSION,
                "features": [digests, [path.rpartition("/")[2] for path in source.arrays[0]], source.how],
                "bold": scanned.identity,
                "voxels": self._voxels,
                "block": fit.block,
                "rows": asdict(rows),
                "delay": sweeps.tags,
                "zscore": fit.zscore_bold,
            }
            group, key = singles_group(feature_set.label, scanned.subject), digest(inputs)
            folds = [fold.name for fold in rows.folds()]
            attributes = {
                "feature_set": feature_set.label,
                "subject": scanned.subject,
                "folds": folds,
                "space": source.as_dict(),
                "delay": sweeps.tags,
                "block": fit.block,
            }
            arrays = singles_arrays(len(folds), self._bold.n_voxels, fit.block)
            self._groups[group] = GroupSpec(group, key, arrays, len(self._bold.blocks), attributes)
            yield SinglesUnit(Unit(group, 0, key), source, rows, sweeps.tags, fit.zscore_bold, tuple(needs))
