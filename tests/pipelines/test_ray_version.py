"""A Ray that is too old is refused before anything of it is imported."""

from importlib.metadata import requires

import pytest

from batchloom.pipelines import ray_version
from batchloom.pipelines.errors import ConfigError


def test_the_oldest_ray_is_the_one_that_is_required() -> None:
    (line,) = [line for line in requires("batchloom") or [] if line.startswith("ray[")]
    assert line.endswith(f">={'.'.join(map(str, ray_version.OLDEST))}")


@pytest.mark.parametrize("found", ["2.9.3", "2.59.1", "1.13.0"])
def test_an_older_one_is_refused(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_version, "version", lambda _: found)
    with pytest.raises(ConfigError, match=rf"^Ray {found} is what .* needs 2\.60 or newer\. Install it on all nodes"):
        ray_version.check_ray()


@pytest.mark.parametrize("found", ["2.60.0", "2.61.0rc1", "3.0.0.dev0"])
def test_a_newer_one_is_taken(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_version, "version", lambda _: found)
    ray_version.check_ray()
