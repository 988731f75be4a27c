"""The job files in the documentation are right: every key and every option exists."""

import re
from pathlib import Path

import pytest

from batchloom import models
from batchloom.jobs import spec
from batchloom.pipelines.tasks import TASKS, TaskSpec, create_task

ROOT = Path(__file__).resolve().parents[3]
JOBS = re.findall(r"```yaml\n(task: .*?)```", (ROOT / "docs/migration.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.split("\n")[0])
def test_a_job_beside_an_old_call_is_right(job, model_of, make_checkpoint, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(job)
    config = spec.load(str(path))
    has_encoder = config.task == "feature-extraction"  # on the page; that of the other tests is a BLOOM
    model = make_checkpoint("BartModel") if has_encoder else model_of(config.task)
    checkpoint = models.describe(model, task=config.task)
    made = create_task(
        TaskSpec(
            task=config.task,
            input=config.input,
            options=config.task_options,
            generation=config.generation,
            checkpoint=checkpoint,
        )
    )
    assert made.output_fields()


@pytest.mark.parametrize("task", TASKS)
def test_every_task_and_option_is_in_the_documentation(task, model_of):
    text = (ROOT / "docs/tasks.md").read_text()
    name = task.replace("-", "_")
    assert f"[{name}.yaml](../examples/{name}.yaml)" in text
    needed = {"zero-shot-classification": {"candidate_labels": ["a"]}, "scoring": {"target_column": "target"}}
    options = needed.get(task, {})
    made = create_task(
        TaskSpec(
            task=task,
            input=spec.load(str(ROOT / f"examples/{name}.yaml")).input,
            options=options,
            generation={},
            checkpoint=models.describe(model_of(task), task=task),
        )
    )
    unsaid = [
        name for name in [*vars(made.options), *(f.name for f in made.output_fields())] if f"`{name}`" not in text
    ]
    assert not unsaid
