"""What commands print: plans, status and models in plain lines."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from hpcenc.cluster.accounting import Account
    from hpcenc.cluster.run_folder import SetAside
    from hpcenc.cluster.status import Status, Units


def plan_lines(priced: Mapping[str, Any]) -> Iterator[str]:
    """Lines of what a submit would do."""
    yield f"store {priced['store']}, fits on {priced['backend']} ({priced['backend_choice']})"
    for stage, units in priced["stages"].items():
        yield f"  {stage:10} {units['to_do']:6} of {units['units']} units to do"
    for what in ("new", "reused", "recomputed", "left_over"):
        groups = priced[what]
        shown = ", ".join(groups[:4]) + (f" and {len(groups) - 4} more" if len(groups) > 4 else "")
        yield f"  {what.replace('_', ' '):10} {len(groups):6} groups{': ' + shown if groups else ''}"
    yield from _price_lines(priced)
    for reason in priced["set_aside"]:
        yield f"  set aside: {reason}"
    for line in priced["idle_sweeps"]:
        yield f"  note: {line}"


def _price_lines(priced: Mapping[str, Any]) -> Iterator[str]:
    """One line each for compute, memory, disk and what dual weights would save."""
    compute, memory, disk = priced["compute"], priced["memory"], priced["disk"]
    stages = ", ".join(f"{stage} {_duration(hours)}" for stage, hours in compute["hours"].items() if hours)
    n_workers, rate = compute["n_workers"], f"{compute['gflops_per_worker']:.0f} GFLOP/s"
    workers = f"{n_workers} worker{'s' if n_workers > 1 else ''}"
    yield (
        f"  {'compute':10} about {sum(compute['flop'].values()) / 1e12:,.1f} TFLOP: {stages or 'nothing'} "
        f"on {workers} at {rate} ({compute['rate']})"
        f"{'; extraction is ' + compute['extraction'] if compute['extraction'] else ''}"
    )
    yield (
        f"  {'memory':10} about {memory['worker_bytes'] / 1e9:.1f} GB a worker"
        f"{' (' + memory['task'] + ')' if memory['task'] else ''}, {workers}; "
        f"{memory['granted_bytes'] / 1e9:.1f} GB granted"
    )
    yield (
        f"  {'disk':10} at most {priced['files_to_write']:,} files, {priced['bytes_to_write'] / 1e9:.2f} GB "
        f"to write to the store, {disk['bytes_to_read'] / 1e9:.2f} GB to read; "
        f"{disk['free_bytes'] / 1e9:.1f} GB free ({disk['free_bytes_of']})"
    )
    saved = priced["dual_weights"]
    if saved["saves_flop"]:
        size_gb, tflop = saved["saves_bytes"] / 1e9, saved["saves_flop"] / 1e12
        save = f"save {size_gb:.2f} GB and" if size_gb > 0 else f"take {-size_gb:.2f} GB more and save"
        yield (
            f"  {'weights':10} primal in {saved['n_primal']:,} of {saved['n_weights']:,} fits; "
            f'as "dual" (fit.weights) they would {save} {tflop:,.1f} TFLOP'
        )


def _duration(hours: float) -> str:
    """Hours, or minutes where they are few."""
    if hours < 1 / 60:
        return "under 1 min"
    return f"{hours:,.1f} h" if hours >= 1 else f"{round(60 * hours)} min"


def status_lines(status: Status) -> Iterator[str]:
    """Lines of what a run has done."""
    ends = {0: "done", 1: "done, something was set aside", 3: "interrupted"}
    if status.ended is not None:
        state = ends[status.ended]
    else:
        state = "running" if status.holder else "killed; `hpcenc submit` resumes"
    holder = status.holder
    if holder is not None and holder.job_id and not holder.host:
        waiting = "job arrays at work; the last is" if status.is_chain else "waiting for its controller,"
        state = f"{waiting} job {holder.job_id}"
    elif status.ended is None and status.waiting_job:
        state, holder = f"waiting for its controller, job {status.waiting_job}", None
    holding = f"; run {holder.run_id} on {holder.host} holds the store" if holder and holder.host else ""
    yield f"run {status.run['run_id']} of {status.run['started']}: {state}{holding}"
    for stage, units in status.stages.items():
        yield f"  {stage:10} {units.done:6} of {units.units} units done{_further(units)}"
    for group, blocks in status.fits.items():
        if blocks.done < blocks.units:
            yield f"  {group}: {blocks.done} of {blocks.units} blocks done{_further(blocks)}"
    yield from _set_aside_lines(status.set_aside)
    yield from _account_lines(status.account)
    yield from _job_lines(status)
    if status.dashboard is not None and status.ended is None:
        yield f"  {dashboard_line(status.dashboard)}"


def _further(units: Units) -> str:
    """What became of units that are not done."""
    told = {
        "running": units.running,
        "failed, to be tried again": units.failed,
        "lost, to be tried again": units.lost,
        "set aside": units.set_aside,
    }
    return "".join(f", {n_units} {what}" for what, n_units in told.items() if n_units)


def _set_aside_lines(set_aside: Iterable[SetAside]) -> Iterator[str]:
    """What was set aside and why; a traceback that many share once."""
    shown = set()
    for found in set_aside:
        yield f"  set aside: {found}"
        if found.details and found.details not in shown:
            shown.add(found.details)
            yield textwrap.indent(found.details.rstrip(), "      ")


def _account_lines(account: Account) -> Iterator[str]:
    """Lines of a run's pace and price."""
    if account.stage and account.units_per_min is not None and account.minutes_left is not None:
        pace, left = account.units_per_min, account.minutes_left
        yield f"  at work: {account.stage}, {pace:.1f} units a minute, about {left:.0f} min left of it"
    for kind, time in account.workers.items():
        busy = "" if time.busy_share is None else f", {time.busy_share:.0%} of that at work on units"
        yield f"  {kind.upper()} workers: {time.n_now} now, {time.hours:.2f} hours so far{busy}"
    for by, n_tries in account.lost.items():
        yield f"  lost and tried again: {n_tries} by {by.replace('_', ' ')}"


def _job_lines(status: Status) -> Iterator[str]:
    """Lines of jobs: those that run by their nodes, those that wait by SLURM's reasons."""
    if status.jobs_unknown:
        yield f"  jobs: {status.jobs_unknown}"
    for job in status.jobs:
        if job.state == "PENDING":
            since = f" since {_utc(job.submitted_s)}" if job.submitted_s else ""
            yield f"  job {job.job_id} ({job.name}) waits{since}: {job.reason or 'no reason given'}"
        else:
            yield f"  job {job.job_id} ({job.name}) {job.state.lower()} on {job.node}"


def dashboard_line(where: Mapping[str, str]) -> str:
    """How to see Dask's dashboard, which listens on its own machine only."""
    link, host = where["dashboard"], where["host"]
    port = urlsplit(link).port
    return f"dashboard: ssh -L {port}:127.0.0.1:{port} {host}, then {link}"


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def check_line(name: str, passed: bool | None, said: str) -> str:
    """Line of one check of a test."""
    return f"{ {True: 'ok', False: 'FAILED', None: '-'}[passed]:8} {name:16} {said}"


def model_table() -> list[dict[str, Any]]:
    """Models with their layers, feature sets and checkpoint files, as plain values."""
    from hpcenc.tasks.models import catalogue
    from hpcenc.tasks.models.official_files import expected_files

    return [
        {
            "model": model,
            "modality": catalogue.modality(model, catalogue.default_layer(model)),
            "default_layer": catalogue.default_layer(model),
            "feature_sets": {
                name: catalogue.default_layer(name)
                for name, (of_model, _) in catalogue.FEATURE_SETS.items()
                if of_model == model
            },
            "layers": list(catalogue.all_layer_names(model)),
            "checkpoints": [
                {
                    "file": file.name,
                    "megabytes": round(file.size_bytes / 1e6),
                    "what": file.what,
                    "from": file.origin,
                    "has_tags": file.has_tags,
                }
                for file in expected_files(model)
            ],
        }
        for model in catalogue.MODELS
    ]


def model_lines() -> Iterator[str]:
    """Lines of the models."""
    for model in model_table():
        yield f"{model['model']} ({model['modality']}), default layer {model['default_layer']}"
        sets = ", ".join(f"{name} ({layer})" for name, layer in model["feature_sets"].items())
        yield f"  feature sets: {sets}"
        yield f"  layers: {', '.join(model['layers'])}"
        for file in model["checkpoints"]:
            yield f"  checkpoint: {file['file']} ({file['megabytes']} MB)"
            yield f"      {file['what']}; from {file['from']}"
    yield "beats+clip and other sums: kernels are added"
