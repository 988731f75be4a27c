"""Commands on a Ray cluster: submit, jobs, logs, attach, stop."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from batchloom.jobs import signals
from batchloom.jobs.cli.command import command
from batchloom.jobs.cli.given import load
from batchloom.jobs.cli.options import Address, Json, RayJobId, Sets

if TYPE_CHECKING:
    from batchloom.jobs.remote.ray_job import RayJob
    from batchloom.jobs.terminal.output import Output

NO_BATCHLOOM = "No module named batchloom"  # Python's own words


def submit(
    job: Annotated[str, typer.Argument(metavar="JOB.YAML", help="The job file.")],
    address: Address,
    sets: Sets = None,
    wait: Annotated[bool, typer.Option(help="Stay, show the job's log and end with its exit code.")] = True,
    ship: Annotated[
        bool, typer.Option("--ship", help="Send this version of batchloom and its packages: the nodes have none.")
    ] = False,
    variables: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME", help="Pass this variable of the environment. Repeatable."),
    ] = None,
    driver_cpus: Annotated[float | None, typer.Option(min=0, help="CPUs that Ray reserves for the driver.")] = None,
    driver_memory: Annotated[
        float | None, typer.Option(metavar="GB", min=0, help="Memory that Ray reserves for the driver.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a job on a Ray cluster."""
    with command(as_json) as output:
        from batchloom.jobs.remote import dashboard
        from batchloom.jobs.remote.submission import Deployment, absolute, variables_of
        from batchloom.jobs.remote.submission import submit as start

        config, local = absolute(load(job, sets, {}))
        memory = None if driver_memory is None else int(driver_memory * 1e9)
        deployment = Deployment(ship, variables_of(variables or []), driver_cpus, memory)
        if local:
            output.note("\n  ".join(["The cluster must see these paths as this machine does:", *local]))
        started = start(config, dashboard.url_of(address), deployment)
        output.result({"event": "submitted", "job": started.id, "address": started.address})
        output.say(f"Submitted {started.id}")
        if wait:
            if ship:
                output.note("Nodes install batchloom and its packages first, where they have not yet: a minute or two.")
            _follow(started, output)
        where = f"{started.id} --address {started.address}"
        output.say(f"Follow it: batchloom attach {where}", f"Stop it:   batchloom stop {where}")


def jobs(address: Address, as_json: Json = False) -> None:
    """List the jobs that were submitted to a cluster, newest first."""
    with command(as_json) as output:
        from dataclasses import asdict

        from batchloom.jobs.remote import dashboard
        from batchloom.jobs.remote.ray_job import jobs_of

        found = jobs_of(dashboard.url_of(address))
        for one in found:
            output.result({"event": "job", **asdict(one)})
        if found:
            rows = [one.words() for one in found]
            output.rows(rows, list(rows[0]), whole=["job"])  # which people copy
        else:
            output.say("No job was submitted there by batchloom.")


def logs(job: RayJobId, address: Address) -> None:
    """Print the log of a submitted job as far as it is."""
    with command(as_json=False) as output:
        output.say(*_ray_job(job, address).log().splitlines())


def attach(job: RayJobId, address: Address, as_json: Json = False) -> None:
    """Follow a submitted job's log, and end with its exit code."""
    with command(as_json) as output:
        _follow(_ray_job(job, address), output)


def stop(job: RayJobId, address: Address, as_json: Json = False) -> None:
    """Stop a submitted job. What is finished stays, and the same job submitted again goes on from there."""
    with command(as_json) as output:
        code = _ray_job(job, address).stop()
        output.result({"event": "ended", "job": job, "exit_code": int(code), "meaning": code.meaning})
        output.say(f"{job} ended with exit code {int(code)}: {code.meaning}")


def _ray_job(job: str, address: str) -> "RayJob":
    from batchloom.jobs.remote import dashboard
    from batchloom.jobs.remote.ray_job import RayJob

    return RayJob.find(job, dashboard.url_of(address))


def _follow(job: "RayJob", output: "Output") -> NoReturn:
    has_no_batchloom = False

    def relay(text: str) -> None:
        nonlocal has_no_batchloom
        has_no_batchloom |= NO_BATCHLOOM in text
        output.relay(text)

    with _still_running(job):
        code = job.follow(relay)
    if code and has_no_batchloom:
        output.note("The cluster's nodes have no batchloom: submit with --ship, or let them run an image that has it.")
    output.result({"event": "ended", "job": job.id, "exit_code": int(code), "meaning": code.meaning})
    output.say(f"{job.id} ended with exit code {int(code)}: {code.meaning}")
    raise typer.Exit(code)


@contextmanager
def _still_running(job: "RayJob") -> Iterator[None]:
    """Make an interrupt end the watching of a submitted job, and not the job."""
    try:
        with signals.handled():
            yield
    except signals.Stop as stop:
        where = f"{job.id} --address {job.address}"
        words = f"{job.id} goes on. To follow it: batchloom attach {where}. To stop it: batchloom stop {where}"
        raise signals.Stop(stop.code, words) from None
