"""Sources by URI: a local hub over HTTP, an in-memory store, and what goes wrong with them."""

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from urllib.parse import unquote

import fsspec
import pytest
import torch
from huggingface_hub import HfFileSystem
from transformers import BartConfig, BartForConditionalGeneration

from batchloom.models import describe, load_model
from batchloom.models.checkpoints.hub import local_folder, open_source
from batchloom.models.errors import CheckpointError
from batchloom.models.patience import Patience

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """As much of the hub's HTTP interface as its file system uses, for one repository; counts what is asked."""

    def __init__(self, folder):
        self.folder, self.requests, self.is_down, self.alters = folder, [], False, ("no file",)
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request):
        path = unquote(request.path.split("?")[0])
        self.requests.append(path)
        if self.is_down:
            return self.send(request, 403, b"down")
        files = sorted(path for path in self.folder.iterdir() if path.is_file())
        for revision in ("main", COMMIT):
            if path in (f"/api/models/org/tiny/revision/{revision}", "/api/models/org/tiny"):
                siblings = [{"rfilename": file.name} for file in files]
                return self.send_json(request, {"id": "org/tiny", "sha": COMMIT, "siblings": siblings})
            if path == f"/api/models/org/tiny/tree/{revision}":
                return self.send_json(request, [self.entry(file) for file in files])
            if path.startswith(f"/org/tiny/resolve/{revision}/"):
                content = (self.folder / path.rsplit("/", 1)[1]).read_bytes()
                altered = content[:-1] + b"\0" if path.endswith(self.alters) else content
                return self.send(request, 200, altered)
        return self.send(request, 404, b"not here", {"X-Error-Code": "RepoNotFound"})

    def entry(self, file):
        """What the hub tells of a file: git's hash of its content, for large files that of a pointer and a sha256."""
        content = file.read_bytes()
        entry = {
            "type": "file",
            "path": file.name,
            "size": len(content),
            "oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
        }
        if file.name == "model.safetensors":
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1}
        return entry

    def send_json(self, request, value):
        self.send(request, 200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, request, status, content, headers=()):
        if status == 200 and (wanted := request.headers.get("Range")):
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            stop = min(int(end) + 1 if end else len(content), len(content))
            total, content, status = len(content), content[int(start) : stop], 206
            headers = dict(headers) | {"Content-Range": f"bytes {start}-{stop - 1}/{total}"}
        request.send_response(status)
        for name, value in {"ETag": '"x"', "X-Repo-Commit": COMMIT, **dict(headers)}.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(content)

    def downloads(self):
        return [path for path in self.requests if "/resolve/" in path]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    config = BartConfig(
        vocab_size=61,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=16,
    )
    torch.manual_seed(0)
    BartForConditionalGeneration(config).save_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"the same weights once more")
    (folder / "tf_model.h5").write_bytes(b"and again")
    return folder


@pytest.fixture
def hub(checkpoint, monkeypatch):
    hub = Hub(checkpoint)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    HfFileSystem.clear_instance_cache()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()
    HfFileSystem.clear_instance_cache()


@pytest.fixture
def impatient(monkeypatch):
    """A hub that is down is told of at once: test_asking.py has how long it is asked."""
    monkeypatch.setattr("batchloom.models.checkpoints.hub.FIRST", Patience(seconds=0.3))


def some_ids():
    return torch.randint(4, 61, (2, 7), generator=torch.Generator().manual_seed(1))


def test_a_model_comes_from_a_hub_once_a_node(hub, checkpoint):
    expected = load_model(str(checkpoint))(some_ids())
    model = load_model("hf://org/tiny@main")
    assert torch.equal(model(some_ids()), expected)
    fetched = {path.rsplit("/", 1)[1] for path in hub.downloads()}
    assert fetched == {"config.json", "generation_config.json", "model.safetensors"}  # and no other format
    num_downloads = len(hub.downloads())
    assert describe("hf://org/tiny@main").weights_hash == describe(str(checkpoint)).weights_hash
    assert len(hub.downloads()) == num_downloads


def test_a_hub_that_is_down_is_no_matter_once_the_model_is_cached(hub):
    first = local_folder("hf://org/tiny")
    hub.is_down = True
    HfFileSystem.clear_instance_cache()
    assert local_folder("hf://org/tiny") == first


def test_a_pinned_commit_that_is_cached_asks_nothing(hub):
    first = local_folder(f"hf://org/tiny@{COMMIT}")
    hub.requests.clear()
    assert local_folder(f"hf://org/tiny@{COMMIT}") == first
    assert hub.requests == []


@pytest.mark.usefixtures("hub")
def test_a_repository_that_is_not_there_is_said_so():
    with pytest.raises(CheckpointError, match="hf://org/other"):
        open_source("hf://org/other")


def test_processes_that_start_together_fetch_once(hub):
    """Guards against the stampede of a node's actors on a hub (429 for every worker, huggingface_hub#3312)."""
    code = "from batchloom.models.checkpoints.hub import local_folder; print(local_folder('hf://org/tiny@main'))"
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    folders = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert len(folders) == 1
    gets = [path for path in hub.downloads() if path.endswith("model.safetensors")]
    assert 1 <= len(gets) <= 2  # one GET, perhaps a HEAD before it


@pytest.fixture
def memory_model(checkpoint):
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(checkpoint) + "/", "/bucket/tiny/", recursive=True)
    yield "memory://bucket/tiny"
    filesystem.rm("/bucket", recursive=True)


def test_weights_are_streamed_from_a_store_and_small_files_cached(memory_model, checkpoint):
    source = open_source(memory_model)
    assert sorted(path.name for path in source.folder.iterdir()) == ["config.json", "generation_config.json"]
    expected = load_model(str(checkpoint))(some_ids())
    assert torch.equal(load_model(memory_model)(some_ids()), expected)
    assert describe(memory_model).weights_hash == describe(str(checkpoint)).weights_hash


def test_a_model_may_be_loaded_inside_inference_mode(memory_model):
    """Guards a bug: reader threads are outside of the caller's inference mode and could not fill its tensors."""
    with torch.inference_mode():
        assert load_model(memory_model)(some_ids()).shape == (2, 7, 61)


def test_a_changed_file_is_fetched_anew(memory_model):
    before = local_folder(memory_model)
    filesystem = fsspec.filesystem("memory")
    changed = json.loads(filesystem.cat("/bucket/tiny/config.json")) | {"decoder_start_token_id": 0}
    filesystem.pipe("/bucket/tiny/config.json", json.dumps(changed).encode())
    after = local_folder(memory_model)
    assert after != before
    assert json.loads((after / "config.json").read_text())["decoder_start_token_id"] == 0


def test_links_are_followed(checkpoint, tmp_path):
    """Guards a bug: the hub's own cache holds links, which were listed as no files."""
    for path in checkpoint.iterdir():
        (tmp_path / path.name).symlink_to(path)
    assert describe(str(tmp_path)).weights_hash == describe(str(checkpoint)).weights_hash
    assert torch.equal(load_model(str(tmp_path))(some_ids()), load_model(str(checkpoint))(some_ids()))


def test_an_unknown_scheme_and_a_file_are_refused(checkpoint):
    with pytest.raises(CheckpointError, match="Cannot open model"):
        open_source("nosuch://bucket/model")
    with pytest.raises(CheckpointError, match="that is a file"):
        open_source(str(checkpoint / "config.json"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_is_not_what_the_hub_has_a_hash_of_is_refused(hub, name):
    """As many bytes as the hub says, and others: a proxy's or a mirror's."""
    hub.alters = (name,)
    with pytest.raises(CheckpointError, match=f"bytes of {name} that came are not the ones that the hub has a hash of"):
        open_source("hf://org/tiny@main")
    hub.alters = ("no file",)
    assert describe("hf://org/tiny@main").weights_hash == describe(str(hub.folder)).weights_hash


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    times = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def link(path):
    outside = path.parent.parent / "outside"
    path.rename(outside)
    path.symlink_to(outside)


DAMAGES = {
    "flipped": flip,
    "cut": lambda path: os.truncate(path, 10),
    "missing": lambda path: path.unlink(),
    "a link": link,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "unrecorded": lambda path: path.parent.with_name(path.parent.name + ".json").unlink(),
    "wrongly recorded": lambda path: path.parent.with_name(path.parent.name + ".json").write_text('{"../x": {}}'),
    "deeply recorded": lambda path: path.parent.with_name(path.parent.name + ".json").write_text("[" * 100_000),
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_copy_is_fetched_again_and_not_used_where_it_cannot_be(hub, damage, caplog):
    """The cache was believed by the names of its folders: weights that were cut or replaced there were loaded."""
    uri = f"hf://org/tiny@{COMMIT}"
    whole = describe(uri).weights_hash
    folder = local_folder(uri)
    damage(folder / "model.safetensors")
    assert describe(uri).weights_hash == whole
    assert "in the cache of models is not used" in caplog.text
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    damage(folder / "model.safetensors")
    hub.is_down = True
    HfFileSystem.clear_instance_cache()
    with pytest.raises(CheckpointError, match="cannot be listed"):
        open_source(uri)


@pytest.mark.usefixtures("impatient")
def test_a_copy_of_the_cache_is_hashed_and_used_and_a_link_to_one_is_not(hub, tmp_path, monkeypatch):
    uri = f"hf://org/tiny@{COMMIT}"
    folder = local_folder(uri)
    shutil.copytree(folder.parent, tmp_path / "copy" / "models")
    monkeypatch.setenv("BATCHLOOM_CACHE", str(tmp_path / "copy"))
    (tmp_path / "copy" / "models" / folder.name / "tokenizer.json").write_text("put there by another")
    hub.is_down = True
    HfFileSystem.clear_instance_cache()
    assert "tokenizer.json" not in open_source(uri).file_names
    shutil.rmtree(tmp_path / "copy" / "models" / folder.name)
    (tmp_path / "copy" / "models" / folder.name).symlink_to(folder)
    with pytest.raises(CheckpointError, match="cannot be listed"):
        open_source(uri)
    hub.is_down = False
    assert local_folder(uri) == tmp_path / "copy" / "models" / folder.name
    assert folder.is_dir()


@pytest.mark.usefixtures("hub")
def test_a_user_without_a_home_is_told_what_to_set_and_gets_no_folder_of_that_name(tmp_path, monkeypatch):
    """A number that no user has, as some clusters run containers: '~' was a folder of the working directory."""

    def user(_):
        raise KeyError("no such user")

    for name in ("BATCHLOOM_CACHE", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", user)
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="has no home directory: set BATCHLOOM_CACHE"):
        local_folder(f"hf://org/tiny@{COMMIT}")
    assert set(tmp_path.iterdir()) == before


@pytest.mark.usefixtures("hub")
def test_a_cache_that_takes_no_files_is_said_with_what_to_set(tmp_path, monkeypatch):
    """It was a traceback."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BATCHLOOM_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match=r"cannot be put into the cache.*set BATCHLOOM_CACHE"):
        local_folder(f"hf://org/tiny@{COMMIT}")
