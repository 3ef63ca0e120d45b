"""What is planted in a demo study, and the files that say so."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcenc.storage.files import write_atomically
from hpcenc.storage.geometry import HCP_ACKNOWLEDGEMENT, glasser_labels
from hpcenc.tasks.demo.bold import (
    CLIP_COURSES,
    FINE_HZ,
    REGIONS,
    draw_mixes,
    fine_course,
    region_labels,
    region_responses,
    simulate_run,
)
from hpcenc.tasks.demo.hrf import hrf
from hpcenc.tasks.demo.scenes import Scenes, Script
from hpcenc.tasks.demo.script import write_scripts
from hpcenc.tasks.demo.seeds import Stream, generator
from hpcenc.tasks.demo.settings import DemoSettings


@dataclass(frozen=True, eq=False)
class Planted:
    """Everything that decides a demo study."""

    settings: DemoSettings
    scripts: tuple[Script, ...]
    """One for each run."""
    regions: NDArray[np.int8]
    """(n_vertices,) index of each cortical vertex into `REGIONS`; -1 for noise alone."""
    responses: dict[str, tuple[NDArray[np.float64], ...]]
    """For each run, the responses (n_courses, n_trs) of each of `REGIONS`."""

    def mixes(self, subject: str) -> tuple[NDArray[np.float32], ...]:
        """Weights (n_vertices of the region, n_courses) of one subject in each of `REGIONS`."""
        rng = generator(self.settings.seed, Stream.MIXES, self.settings.subjects.index(subject))
        return tuple(
            draw_mixes(int((self.regions == index).sum()), len(region.courses), rng)
            for index, region in enumerate(REGIONS)
        )


def plan_demo(settings: DemoSettings) -> Planted:
    """Draw scenes and responses of a demo study.

    Raises
    ------
    ValueError
        If a run has no room for its scenes; see `plan_segments`.
    """
    durations_s = [n_trs * settings.tr_s for n_trs in settings.runs.values()]
    scripts = write_scripts(durations_s, settings.rest_s, settings.clip_s, settings.seed)
    responses = {
        run: region_responses(script, n_trs, settings.tr_s, settings.seed)
        for (run, n_trs), script in zip(settings.runs.items(), scripts, strict=True)
    }
    return Planted(settings, scripts, region_labels(*glasser_labels()), responses)


def simulate_bold(planted: Planted, subject: str, run: str, n_voxels: int) -> NDArray[np.float32]:
    """BOLD of one subject in one run, (n_voxels, n_trs), z-scored; the cortex comes first."""
    settings = planted.settings
    number = list(settings.runs).index(run)
    showing_start_s, _ = planted.scripts[number].showing_s
    return simulate_run(
        planted.responses[run],
        planted.mixes(subject),
        planted.regions,
        n_voxels,
        showing_start=int(showing_start_s / settings.tr_s),
        snr=settings.snr,
        rho=settings.noise_rho,
        rng=generator(settings.seed, Stream.BOLD_NOISE, settings.subjects.index(subject), number),
    )


def write_planted(folder: Path, planted: Planted) -> None:
    """Write ``planted.npz`` and ``planted.json`` into the study's folder."""
    with (folder / "planted.npz").open("wb") as file:
        np.savez_compressed(file, **planted_arrays(planted))  # type: ignore[arg-type]  # its stub takes one dtype
    text = json.dumps(planted_facts(planted), indent=1)
    write_atomically(folder / "planted.json", text.encode())


def planted_arrays(planted: Planted) -> dict[str, NDArray[Any]]:
    """Arrays of ``planted.npz``.

    Returns
    -------
    dict of array
        ``region`` (n_vertices,) with ``region_names``; for each run, ``fine_<run>`` (n_courses, n_samples),
        all courses before the HRF at ``fine_hz``, in the order of ``courses``, and
        ``response_<run>_<region>`` (n_courses, n_trs); ``hrf_<region>`` at ``fine_hz``;
        ``mix_<subject>_<region>`` (n_vertices, n_courses).
    """
    courses = [course for region in REGIONS for course in region.courses]
    arrays: dict[str, NDArray[Any]] = {
        "region": planted.regions,
        "region_names": np.array([region.name for region in REGIONS]),
        "courses": np.array(courses),
        "fine_hz": np.array(FINE_HZ),
    }
    for region in REGIONS:
        arrays[f"hrf_{region.name}"] = hrf(region.peak_s, FINE_HZ)
    for script, (run, responses) in zip(planted.scripts, planted.responses.items(), strict=True):
        arrays[f"fine_{run}"] = np.stack(
            [fine_course(script, name, planted.settings.seed) for name in courses]
        )
        for region, response in zip(REGIONS, responses, strict=True):
            arrays[f"response_{run}_{region.name}"] = response
    for subject in planted.settings.subjects:
        for region, mix in zip(REGIONS, planted.mixes(subject), strict=True):
            arrays[f"mix_{subject}_{region.name}"] = mix
    return arrays


def planted_facts(planted: Planted) -> dict[str, Any]:
    """What was planted in words and numbers: ``planted.json``."""
    return {
        "note": planted.settings.note,
        "settings": asdict(planted.settings),
        "regions": [
            {
                **asdict(region),
                "n_vertices": int((planted.regions == index).sum()),
                "repeats_with_the_clip_only": set(region.courses) <= set(CLIP_COURSES),
            }
            for index, region in enumerate(REGIONS)
        ],
        "elsewhere": "AR(1) noise alone, as under every planted signal",
        "scenes": {
            run: [
                {
                    "start_s": start_s,
                    "picture": _scene_table(block.picture),
                    "sound": _scene_table(block.sound),
                }
                for start_s, block in script.blocks
            ]
            for run, script in zip(planted.settings.runs, planted.scripts, strict=True)
        },
        "parcellation": "Glasser et al. (2016), MMP 1.0",
        "acknowledgement": HCP_ACKNOWLEDGEMENT,
    }


def _scene_table(scenes: Scenes) -> dict[str, list[float]]:
    """Ends in seconds from the block's start, and levels in [0, 1), of all scenes."""
    table = {"end_s": scenes.end_s, **scenes.levels}
    return {name: np.round(values, 4).tolist() for name, values in table.items()}
