"""A job whose units take as long as the test wants, run as a process: `python -m tests.cluster.paced_job JOB FOLDER`.

Every batch waits until the file FOLDER/fast is there, some seconds at most, and tells FOLDER/replicas which process
computed it, where, and with how many threads. Events are printed, as `batchloom run --json` prints them.
"""

import json
import os
import sys
import threading
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import ray

from batchloom.jobs import spec
from batchloom.jobs.terminal.output import event_values
from batchloom.pipelines.errors import PipelineError
from batchloom.pipelines.metrics import Event
from batchloom.pipelines.running import driver

BATCH_SECONDS = 8.0  # so many that reading keeps up with four replicas on a busy machine, or the pool would not grow


def main(job_file: str, folder: Path) -> None:
    plan = driver.plan

    def paced_plan(config: Any) -> Any:
        job = plan(config)

        class Paced(type(job.task)):
            def ask(self, model: Any, token_ids: Any) -> Any:
                names = [thread.name for thread in threading.enumerate()]
                told = {
                    "process": os.getpid(),
                    "node": ray.get_runtime_context().get_node_id(),
                    "threads": sum(name.startswith("single pass") for name in names),
                    "at": time.time(),
                }
                with (folder / "replicas").open("a") as file:
                    file.write(json.dumps(told) + "\n")
                until = time.monotonic() + BATCH_SECONDS
                while time.monotonic() < until and not (folder / "fast").exists():
                    time.sleep(0.05)
                return super().ask(model, token_ids)

        values = {field.name: getattr(job.task, field.name) for field in fields(job.task)}
        return replace(job, task=Paced(**values))

    driver.plan = paced_plan
    try:
        driver.run(spec.load(job_file), tell)
    except PipelineError as error:
        print(json.dumps({"event": "error", "kind": type(error).__name__, "message": str(error)}), flush=True)
        sys.exit(1)


def tell(event: Event) -> None:
    print(json.dumps(event_values(event), default=str), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
