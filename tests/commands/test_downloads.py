"""Downloads through the front door: `lm data download`, `lm data build` and `lm train`."""

import hashlib
import json
import signal
import time

import pytest

from lm.data import download
from lm.data.download import RemoteFile
from lm.data.sources.named import NAMED, Corpus
from tests.commands.runs import files, finish, start
from tests.data.http import Step


@pytest.fixture
def corpus_site(site, corpus, monkeypatch):
    """The shared corpus on a server, also under the name `words`; nothing waits between attempts."""
    monkeypatch.setattr(download, "_BACKOFF_SECONDS", 0.01)
    site.files["/words.txt"] = content = corpus.read_bytes()
    file = RemoteFile(site.url + "/words.txt", hashlib.sha256(content).hexdigest(), len(content))
    monkeypatch.setitem(NAMED, "words", Corpus((file,), "text", "CC0", "made-up words"))
    return site


def source(path, *more):
    return ["--config.data.source=download", f"--config.data.path={path}", *more]


def test_the_list_names_every_corpus_with_size_license_and_url(lm):
    done = lm("data", "download", "--list")
    assert done.code == 0 and done.err == ""
    for name, corpus in NAMED.items():
        assert name in done.out and corpus.license in done.out and corpus.files[0].url in done.out
    assert set(json.loads(lm("data", "download", "--list", "--json").out)) == set(NAMED)


def test_a_dropped_connection_resumes(lm, corpus_site, corpus, tmp_path):
    corpus_site.plan = [Step(drop_at=9_000), Step(status=503), Step(drop_at=20_000)]
    done = lm("data", "download", "words", "--cache", tmp_path, "--json")
    (file,) = json.loads(done.out)["files"]
    assert done.code == 0
    assert "dropped at 9,000 of" in done.err and "503" in done.err and "trying again in 0 s" in done.err
    assert sum(seen.sent for seen in corpus_site.seen) == corpus.stat().st_size == file["bytes"]
    with open(file["path"], "rb") as got:
        assert got.read() == corpus.read_bytes()


def test_a_download_that_was_stopped_continues_at_the_next_start(corpus_site, corpus, tmp_path):
    url = corpus_site.url + "/words.txt"
    corpus_site.plan = [Step(stall_at=10_000)]
    part = tmp_path / "cache" / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:16] / "words.txt.part"
    stopped = start("data", "download", url, "--cache", tmp_path / "cache")
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size == 10_000):
        assert time.monotonic() < deadline and stopped.poll() is None, finish(stopped)
        time.sleep(0.02)
    stopped.send_signal(signal.SIGTERM)
    assert finish(stopped)[0] != 0
    code, out, err = finish(start("data", "download", url, "--cache", tmp_path / "cache"))
    assert code == 0, err
    assert corpus_site.seen[1].range == "bytes=10000-"
    assert part.with_name("words.txt").read_bytes() == corpus.read_bytes()
    assert "recorded at the first download" in out


@pytest.mark.parametrize("verb", ["download", "train"])
def test_a_wrong_checksum_is_refused_and_the_file_set_aside(lm, train, corpus_site, tmp_path, verb):
    corpus_site.files["/words.txt"] = corpus_site.files["/words.txt"].replace(b"a", b"b")
    if verb == "download":
        done = lm("data", "download", "words", "--cache", tmp_path / "cache")
    else:
        done = train(tmp_path / "run", *source("words", f"--config.data.cache={tmp_path / 'cache'}"))
    assert done.code == 1 and done.out == ""
    assert "Traceback" not in done.err
    assert done.err.splitlines()[-1].startswith(f"lm: {corpus_site.url}/words.txt has sha256 ")
    folder = tmp_path / "cache" / "downloads" / "words"
    assert list(files(folder)) == ["words.txt.corrupt"]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("verb", ["download", "build", "train"])
def test_no_network_is_one_line(lm, train, config, tmp_path, verb):
    cache = tmp_path / "cache"
    if verb == "download":
        done = lm("data", "download", "http://127.0.0.1:9/words.txt", "--cache", cache)
    elif verb == "build":
        arguments = source("http://127.0.0.1:9/words.txt", f"--config.data.cache={cache}")
        done = lm("data", "build", f"--config={config}", f"--out={tmp_path / 'out'}", *arguments)
    else:
        done = train(tmp_path / "run", *source("http://127.0.0.1:9/words.txt", f"--config.data.cache={cache}"))
    line = done.refusal(2)
    assert "cannot download http://127.0.0.1:9/words.txt: Connection refused. Check the network" in line
    assert files(cache) == {}


def test_training_on_a_download_is_training_on_the_same_file(lm, train, config, corpus_site, tmp_path):
    corpus_site.plan = [Step(drop_at=5_000)]
    out = [tmp_path / "downloaded", tmp_path / "local"]
    done = lm("data", "build", f"--config={config}", f"--out={out[0]}", *source("words"), "--json")
    assert done.code == 0, done.err
    downloaded = json.loads(done.out)
    local = json.loads(lm("data", "build", f"--config={config}", f"--out={out[1]}", "--json").out)
    assert downloaded["hash"] == local["hash"]
    printed = lm("data", "card", out[0]).out
    assert all(word in printed for word in (f"{corpus_site.url}/words.txt", "CC0", "sha256", "words"))


def test_what_does_not_fit_together_is_refused(lm, train, tmp_path):
    for arguments, words in (
        (["--config.data.sha256=" + "a" * 64], ["config.data.sha256", "'download'"]),
        (["--config.data.revision=main"], ["config.data.revision", "'huggingface'"]),
        (["--config.data.source=download", "--config.data.path=None"], ["config.data.path", "lm data download --list"]),
        (source("enwik9"), ["no corpus 'enwik9'", 'Did you mean "enwik8"?']),
        (source("simplewiki_dump"), ["MediaWiki", "wikipedia_simple"]),
    ):
        line = train(tmp_path / "run", *arguments).refusal(2)
        assert all(word in line for word in words), line
    assert "NAME or a URL, or --list" in lm("data", "download").refusal(2)
    assert "NAME or a URL, or --list" in lm("data", "download", "enwik8", "--list").refusal(2)
