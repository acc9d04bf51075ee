"""The source `huggingface`: local folders, and a hub on this machine that drops connections."""

import dataclasses
import http.server
import json
import socket
import threading

import pytest

from lm.config import DataConfig
from lm.data.build import build
from lm.data.card import card
from lm.data.dataset import open_data
from lm.data.prepare import cache_key, prepare
from lm.data.sources import documents
from lm.errors import ConfigError, LmError, UsageError
from tests.commands.runs import finish, start

pytestmark = pytest.mark.peer
COMMIT = "c0ffee" + "0" * 34
TEXTS = [f"Document {number}: " + "some words of it " * 400 for number in range(300)]

CONFIG = """
from lm.config import default


def get_config():
    config = default()
    config.data.source = "huggingface"
    config.data.path = "org/name"
    config.data.tokenizer_vocab_size = 300
    config.data.workers = 1
    return config
"""


class Hub(http.server.ThreadingHTTPServer):
    """As much of the hub's API as `datasets` asks for: one dataset of one file at one commit."""

    daemon_threads = True

    def __init__(self, name: str, content: bytes):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name, self.content = name, content
        self.drops: list[int] = []  # bytes after which the next transfers of the file are cut off
        self.ranges: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        hub: Hub = self.server
        path = self.path.split("?")[0]
        api = "/api/datasets/org/name"
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            self._json({"id": "org/name", "sha": COMMIT, "private": False, "tags": [], "siblings": []})
        elif path == f"{api}/tree/{COMMIT}":
            self._json([{"type": "file", "path": hub.name, "oid": "0" * 40, "size": len(hub.content)}])
        elif path == f"/datasets/org/name/resolve/{COMMIT}/{hub.name}":
            self._file(hub)
        else:
            missing = (
                "RepoNotFound"
                if "org/name" not in path
                else "RevisionNotFound"
                if "revision" in path
                else "EntryNotFound"
            )
            self._head(404, {"X-Error-Code": missing, "Content-Length": "0"})

    do_HEAD = do_GET

    def _file(self, hub: Hub) -> None:
        asked, start, stop = self.headers["Range"], 0, len(hub.content)
        if asked:
            first, last = asked.removeprefix("bytes=").split("-")
            start, stop = int(first), min(stop, int(last) + 1) if last else stop
        headers = {"ETag": '"1"', "X-Repo-Commit": COMMIT, "Content-Length": str(stop - start)}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(hub.content)}"
        self._head(206 if asked else 200, headers)
        if self.command == "HEAD":
            return
        hub.ranges.append(asked)
        if hub.drops and stop - start > hub.drops[0]:
            self.wfile.write(hub.content[start : start + hub.drops.pop(0)])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            self.wfile.write(hub.content[start:stop])

    def _json(self, value) -> None:
        body = json.dumps(value).encode()
        self._head(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        if self.command == "GET":
            self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_):
        pass


def write_parquet(path, texts, **more):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(
        pyarrow.table({"text": texts, **more}), path, row_group_size=50, compression="none", use_dictionary=False
    )
    return path


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def folder(tmp_path):
    """A local dataset of two splits."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    write_parquet(folder / "train.parquet", TEXTS, number=list(range(len(TEXTS))))
    write_parquet(folder / "validation.parquet", ["held out"], number=[0])
    return folder


def read(path, **fields):
    return list(documents(DataConfig(source="huggingface", path=str(path), **fields)))


def test_a_local_folder_is_streamed_in_order(folder, tmp_path):
    found = read(folder)
    assert [d.text for d in found] == TEXTS
    assert found[2].id == f"{folder}:3"
    assert [d.text for d in read(folder, split="validation")] == ["held out"]
    assert [d.text for d in read(folder, max_documents=7)] == TEXTS[:7]
    (tmp_path / "lines").mkdir()
    write_jsonl(tmp_path / "lines" / "a.jsonl", TEXTS)
    assert [d.text for d in read(tmp_path / "lines")] == TEXTS


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"split": "nosuch"}, ["config.data.split='nosuch'", "validation"]),
        ({"subset": "nosuch"}, ["config.data.subset='nosuch'", "default"]),
        ({"text_key": "body"}, ["config.data.text_key='body'", "text, number"]),
        ({"text_key": "number"}, ["row 1 has no text", "int"]),
    ],
)
def test_what_a_dataset_does_not_have_is_one_line(folder, fields, words):
    with pytest.raises(LmError) as error:
        read(folder, **fields)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_damaged_and_missing_files_are_one_line(folder, tmp_path, capfd):
    path = folder / "train.parquet"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(LmError, match="cannot read the dataset"):
        read(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty"):
        read(tmp_path / "empty")
    with pytest.raises(ConfigError, match="a folder, or a dataset as org/name"):
        read(tmp_path / "nowhere")
    assert capfd.readouterr().err == ""


def test_a_local_folder_is_prepared_and_keyed_by_its_files(folder, tmp_path):
    config = DataConfig(source="huggingface", path=str(folder), tokenizer_vocab_size=300, max_documents=100, workers=1)
    dataset = open_data(prepare(config, cache_root=str(tmp_path / "cache")))
    assert sum(dataset.counts(split)["documents"] for split in dataset.splits) == 100
    assert card(dataset)["source"]["max_documents"] == 100
    keys = {cache_key(config), cache_key(dataclasses.replace(config, split="validation"))}
    write_parquet(folder / "train.parquet", TEXTS[:-1], number=list(range(len(TEXTS) - 1)))
    assert len(keys | {cache_key(config)}) == 3


@pytest.fixture(params=["a.parquet", "a.jsonl"])
def hub(request, tmp_path):
    write = write_parquet if request.param.endswith("parquet") else write_jsonl
    server = Hub(request.param, write(tmp_path / request.param, TEXTS).read_bytes())
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def lm_build(tmp_path):
    """Run `lm data build` against a hub; returns exit code, stdout and stderr."""
    (tmp_path / "config.py").write_text(CONFIG)

    def run(url, *arguments, out="out"):
        environment = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), "no_proxy": "127.0.0.1"}
        command = ("data", "build", "--config", tmp_path / "config.py", "--out", tmp_path / out, "--json", *arguments)
        return finish(start(*command, **environment))

    return run


def test_a_dropped_connection_to_the_hub_loses_and_repeats_nothing(hub, lm_build, tmp_path):
    hub.drops = [300_000, 100_000]
    code, out, err = lm_build(hub.url)
    assert code == 0, err
    assert hub.drops == [] and len(hub.ranges) > 2
    source = json.loads(out)["source"]
    assert source["revision"] == f"{COMMIT} (not pinned: what main was then)"
    local = write_jsonl(tmp_path / "local.jsonl", TEXTS)
    build(DataConfig(source="jsonl", path=str(local), tokenizer_vocab_size=300, workers=1), str(tmp_path / "local"))
    assert json.loads(out)["hash"] == open_data(str(tmp_path / "local")).hash


def test_a_sample_of_a_dataset_ends_where_it_should(hub, lm_build):
    code, out, err = lm_build(hub.url, f"--config.data.revision={COMMIT}", "--config.data.max_documents=60")
    assert code == 0 and "Fatal" not in err, err
    content = json.loads(out)
    assert sum(split["documents"] for split in content["splits"].values()) == 60
    assert content["source"]["revision"] == COMMIT


@pytest.mark.parametrize("hub", ["a.jsonl"], indirect=True)
def test_prepared_data_of_a_pinned_commit_needs_no_network(hub, tmp_path):
    code = f"""
from lm.config import DataConfig
from lm.data.prepare import prepare
print(prepare(DataConfig(
    source="huggingface", path="org/name", revision="{COMMIT}", tokenizer_vocab_size=300, cache={str(tmp_path)!r}, workers=1
)))
"""
    environment = {"HF_HOME": str(tmp_path / "home"), "no_proxy": "127.0.0.1"}
    first = finish(start(code=code, HF_ENDPOINT=hub.url, **environment))
    second = finish(start(code=code, HF_ENDPOINT="http://127.0.0.1:9", **environment))
    assert first[0] == second[0] == 0, (first, second)
    assert first[1] == second[1]


def test_no_network_is_one_line(lm_build, tmp_path):
    for arguments in ([], [f"--config.data.revision={COMMIT}"]):
        code, out, err = lm_build("http://127.0.0.1:9", *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert "cannot reach the Hugging Face hub for 'org/name'" in err and "Check the network" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("hub", ["a.jsonl"], indirect=True)
def test_a_dataset_or_revision_that_is_not_there_is_one_line(hub, lm_build):
    for arguments, words in (
        (["--config.data.path=org/other"], ["'org/other'", "404", "Check the name"]),
        (["--config.data.revision=v9"], ["config.data.revision='v9'"]),
    ):
        code, out, err = lm_build(hub.url, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert all(word in err for word in words), err
