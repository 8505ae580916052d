"""A loopback server stands for the hub; each resolution runs in a process of its own, because
huggingface_hub reads its environment once, when it is imported."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from phiscope.checkpoint import hub
from phiscope.checkpoint.hub import resolve
from phiscope.errors import HubError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/phi-2"
SAFE = {
    "config.json": b'{"model_type": "phi"}',
    "generation_config.json": b'{"eos_token_id": 1}',
    "tokenizer.json": b'{"model": 2}',
    "vocab.json": b'{"a": 3}',
    "merges.txt": b"#version: 0.2\n",
    "model.safetensors.index.json": b"{}",
    "model-00001-of-00002.safetensors": b"one",
    "model-00002-of-00002.safetensors": b"two",
}
UNWANTED = {
    "README.md": b"read me",
    "modeling_phi.py": b"raise SystemExit",
    "pytorch_model.bin": b"pickle",
    "onnx/model.safetensors": b"inner",
    "onnx/config.json": b"inner",
    "training_args.bin": b"pickle",
    "tf_model.h5": b"other",
}


class Hub(BaseHTTPRequestHandler):
    """One model repository, with the few routes a snapshot needs.

    A test's own subclass has `files` (served), `fetched` (names) and `tokens` (seen).
    """

    cut = False
    status = 200

    def do_GET(self):
        self.tokens.add(self.headers.get("Authorization"))
        if self.status != 200:
            self.send_response(self.status)
            self.send_header("X-Error-Code", "RepoNotFound" if self.status == 404 else "Other")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif match := re.match(f"/api/models/{NAME}/revision/([^?]+)", self.path):
            self._revision(match[1])
        elif self.path.startswith(f"/api/models/{NAME}/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": oid(data)}
                for name, data in self.files.items()
            ]
            self._send(json.dumps(entries).encode())
        elif match := re.match(f"/{NAME}/resolve/{COMMIT}/(.+)", self.path):
            self._file(match[1])
        else:
            self.send_error(404)

    do_HEAD = do_GET  # noqa: N815

    def _revision(self, name):
        if name in ("main", "v2"):
            siblings = [{"rfilename": file} for file in self.files]
            self._send(json.dumps({"id": NAME, "sha": COMMIT, "siblings": siblings}).encode())
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RevisionNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _file(self, name):
        data = self.files[name]
        if self.command == "GET":
            self.fetched.append(name)
        headers = {"ETag": f'"{oid(data)}"', "X-Repo-Commit": COMMIT}
        self._send(data[: len(data) // 2] if self.cut and self.command == "GET" else data, headers)

    def _send(self, data, headers=None):
        self.send_response(200)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)
        self.close_connection = True

    def log_message(self, *_):
        pass


def oid(data):
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def server():
    handler = type("OneHub", (Hub,), {"fetched": [], "tokens": set(), "files": SAFE | UNWANTED})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    handler.url = f"http://127.0.0.1:{server.server_port}"
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def apart():
    """A process whose forks resolve: see forked.py."""
    command = [sys.executable, str(Path(__file__).with_name("forked.py"))]
    variables = {**clean_environment(), "PYTHONPATH": str(Path(hub.__file__).parents[2])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=variables, text=True, **pipes) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def resolve_apart(apart):
    """Resolve in a new process; its standard output, or the line of its HubError."""

    def run(home, *, name=NAME, revision="", **environment):
        variables = {
            **clean_environment(),
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
            **environment,
        }
        request = {"name": name, "revision": revision, "environment": variables}
        print(json.dumps(request), file=apart.stdin, flush=True)
        done = json.loads(apart.stdout.readline())
        assert "Traceback" not in done["stderr"]
        return done["stdout"].strip() or done["stderr"].strip().splitlines()[-1]

    return run


def clean_environment():
    return {key: value for key, value in os.environ.items() if not key.startswith("HF_")}


def make_cache(home, files):
    """A model in the cache as the hub's own client lays it out."""
    model = home / "hub" / "models--someone--phi-2"
    snapshot = model / "snapshots" / COMMIT
    for folder in (model / "blobs", model / "refs", snapshot):
        folder.mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    for name, data in files.items():
        (model / "blobs" / oid(data)).write_bytes(data)
        (snapshot / name).symlink_to(Path("../../blobs") / oid(data))
    return snapshot


def test_existing_folder_wins_over_the_hub_and_an_embedded_name_over_a_folder(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nano").mkdir()
    (tmp_path / "someone" / "phi-2").mkdir(parents=True)
    assert resolve("nano").parent.name == "models"
    assert resolve("./nano") == Path("nano")
    assert resolve(NAME) == Path(NAME)
    assert resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    "name",
    ["", "phi-2", "./absent", "/no/such/folder", "a/b/c", "a b/c", "~/absent", "x\0y", "x" * 5000],
)
def test_name_that_leads_nowhere_says_what_names_may_be(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HubError, match=r"no folder .* no hub id such as 'microsoft/phi-2'"):
        resolve(name)


@pytest.mark.parametrize("name", ["tiny", "."])
def test_a_revision_of_what_is_not_on_the_hub_is_refused(name):
    with pytest.raises(HubError, match=r"has no revision 'v2'"):
        resolve(name, revision="v2")


def test_cached_model_loads_offline(tmp_path, resolve_apart):
    snapshot = make_cache(tmp_path, SAFE)
    assert resolve_apart(tmp_path, HF_HUB_OFFLINE="1") == str(snapshot)


def test_cached_model_with_only_pickles_loads_offline(tmp_path, resolve_apart):
    files = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    assert resolve_apart(tmp_path, HF_HUB_OFFLINE="1").startswith("HubError")
    snapshot = make_cache(tmp_path, files)
    assert resolve_apart(tmp_path, HF_HUB_OFFLINE="1") == str(snapshot)


def test_only_config_tokenizer_and_weights_are_fetched(server, tmp_path, resolve_apart):
    found = Path(resolve_apart(tmp_path, HF_ENDPOINT=server.url, HF_TOKEN="hf_secret"))
    assert {path.name: path.read_bytes() for path in found.iterdir()} == SAFE
    assert sorted(server.fetched) == sorted(SAFE)
    assert server.tokens == {"Bearer hf_secret"}
    assert resolve_apart(tmp_path, HF_ENDPOINT=server.url, HF_HUB_OFFLINE="1") == str(found)


def test_pickles_are_fetched_only_where_there_are_no_safetensors(server, tmp_path, resolve_apart):
    server.files = UNWANTED | {"config.json": b"{}"}
    found = Path(resolve_apart(tmp_path, HF_ENDPOINT=server.url))
    assert sorted(path.name for path in found.iterdir()) == ["config.json", "pytorch_model.bin"]


def test_revision_is_asked_for(server, tmp_path, resolve_apart):
    found = resolve_apart(tmp_path, HF_ENDPOINT=server.url, revision="v2")
    assert found.endswith(COMMIT)
    assert (tmp_path / "hub" / "models--someone--phi-2" / "refs" / "v2").read_text() == COMMIT


def test_fault_56_model_that_is_no_model_is_named(server, tmp_path, resolve_apart):
    server.files = {"README.md": b"nothing here"}
    message = resolve_apart(tmp_path, HF_ENDPOINT=server.url)
    assert message.startswith("HubError: ")
    assert NAME in message


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(404, "there is no such model; if it is private, set HF_TOKEN"), (403, "HF_TOKEN")],
)
def test_fault_56_refusal_of_the_hub_gives_the_remedy(
    server, tmp_path, status, remedy, resolve_apart
):
    server.status = status
    message = resolve_apart(tmp_path, HF_ENDPOINT=server.url)
    assert message.startswith(f"HubError: cannot fetch '{NAME}'")
    assert remedy in message


def test_fault_56_absent_revision_is_named(server, tmp_path, resolve_apart):
    message = resolve_apart(tmp_path, HF_ENDPOINT=server.url, revision="v9")
    assert "at revision 'v9': it has no such revision" in message


def test_fault_56_offline_without_a_cache_gives_the_remedy(tmp_path, resolve_apart):
    message = resolve_apart(tmp_path, HF_HUB_OFFLINE="1")
    assert message.startswith(f"HubError: cannot fetch '{NAME}'")
    assert "HF_HUB_OFFLINE" in message


def test_fault_56_hub_that_does_not_answer_gives_the_remedy(tmp_path, resolve_apart):
    message = resolve_apart(tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert "check the connection" in message


def test_fault_56_cache_that_cannot_be_written_gives_the_remedy(server, resolve_apart):
    nobody_may_write_here = Path("/proc/phiscope")  # not even root
    message = resolve_apart(nobody_may_write_here, HF_ENDPOINT=server.url)
    assert message.startswith("HubError: cannot fetch")
    assert "HF_HOME" in message


def test_fault_56_cache_in_place_of_a_file_gives_the_remedy(server, tmp_path, resolve_apart):
    (tmp_path / "home").write_text("")
    message = resolve_apart(tmp_path / "home", HF_ENDPOINT=server.url)
    assert message.startswith("HubError: cannot fetch")
    assert "HF_HOME" in message


def test_fault_56_download_cut_short_is_not_taken_for_whole(server, tmp_path, resolve_apart):
    server.cut = True
    message = resolve_apart(tmp_path, HF_ENDPOINT=server.url)
    assert message.startswith(f"HubError: cannot fetch '{NAME}'")
    server.cut = False
    found = Path(resolve_apart(tmp_path, HF_ENDPOINT=server.url))
    assert {path.name: path.read_bytes() for path in found.iterdir()} == SAFE
