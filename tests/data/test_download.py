"""Downloads: continued, verified, whole or not at all, on a server that misbehaves."""

import errno
import hashlib
import json
import os
import random
import shutil
import threading
import urllib.error
import urllib.request

import pytest

from lm.data import download
from lm.data.download import RemoteFile, fetch, record
from lm.errors import DamagedFileError, LmError, UsageError
from tests.data.http import Step

CONTENT = random.Random(0).randbytes(100_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def waits(monkeypatch):
    """Seconds that were waited, without waiting them."""
    waited = []
    monkeypatch.setattr(download.time, "sleep", waited.append)
    return waited


@pytest.fixture
def site(site, waits):
    site.files["/corpus.txt"] = CONTENT
    return site


@pytest.fixture
def get(site, tmp_path):
    """Fetch the file, with these fields; returns its content."""

    def fetched(path="/corpus.txt", progress=None, **fields):
        with open(fetch(RemoteFile(site.url + path, **fields), str(tmp_path / "here"), progress), "rb") as file:
            return file.read()

    return fetched


def names(tmp_path):
    return sorted(os.listdir(tmp_path / "here"))


def test_a_file_is_downloaded_once_and_recorded(get, site, tmp_path):
    assert get(sha256=SHA256, bytes=len(CONTENT)) == CONTENT
    assert get(sha256=SHA256, bytes=len(CONTENT)) == CONTENT
    assert len(site.seen) == 1
    assert names(tmp_path) == ["corpus.txt", "corpus.txt.json"]
    about = json.loads((tmp_path / "here" / "corpus.txt.json").read_text())
    assert about == {"url": f"{site.url}/corpus.txt", "sha256": SHA256, "bytes": len(CONTENT), "checksum": "given"}


def test_a_dropped_connection_resumes_and_only_the_missing_bytes_are_transferred(get, site):
    site.plan = [Step(drop_at=40_000), Step(drop_at=25_000), Step(drop_at=0)]
    assert get() == CONTENT
    assert [seen.range for seen in site.seen] == [None, "bytes=40000-", "bytes=65000-", "bytes=65000-"]
    assert sum(seen.sent for seen in site.seen) == len(CONTENT)
    assert {seen.if_range for seen in site.seen[1:]} == {'"1"'}


def test_the_next_start_continues_where_an_interrupted_one_stopped(get, site, tmp_path):
    def interrupt(stage, done, *_):
        if done >= 30_000:
            raise KeyboardInterrupt

    site.plan = [Step(drop_at=30_000)]
    with pytest.raises(KeyboardInterrupt):
        get(progress=interrupt)
    assert names(tmp_path) == ["corpus.txt.part", "corpus.txt.part.json"]
    assert get() == CONTENT
    assert site.seen[1].range == "bytes=30000-"
    assert sum(seen.sent for seen in site.seen) == len(CONTENT)


def test_a_server_that_ignores_ranges_is_read_from_the_start(get, site):
    site.plan = [Step(drop_at=40_000), Step(ignore_range=True)]
    assert get(sha256=SHA256) == CONTENT
    assert [seen.status for seen in site.seen] == [200, 200]


def test_a_file_that_changed_meanwhile_is_downloaded_anew(get, site):
    def change(stage, done, *_):
        if done == 40_000 and site.etag == '"1"':
            site.etag, site.files["/corpus.txt"] = '"2"', CONTENT[::-1]

    site.plan = [Step(drop_at=40_000)]
    assert get(progress=change) == CONTENT[::-1]
    assert [seen.status for seen in site.seen] == [200, 200]


def test_a_changed_file_is_noticed_when_the_server_ignores_if_range(get, site):
    def change(stage, done, *_):
        if done == 40_000 and site.etag == '"1"':
            site.etag, site.files["/corpus.txt"] = '"2"', CONTENT[::-1]

    site.plan = [Step(drop_at=40_000), Step(ignore_if_range=True)]
    assert get(progress=change) == CONTENT[::-1]
    assert [seen.status for seen in site.seen] == [200, 206, 200]


@pytest.mark.parametrize("etag", [None, 'W/"1"'])
def test_without_a_strong_etag_only_a_known_checksum_lets_it_continue(get, site, etag):
    site.etag = etag
    site.plan = [Step(drop_at=40_000)]
    assert get() == CONTENT
    assert [seen.range for seen in site.seen] == [None, None]
    site.files["/again.txt"] = CONTENT
    site.plan = [Step(drop_at=40_000)]
    assert get("/again.txt", sha256=SHA256) == CONTENT
    assert (site.seen[-1].range, site.seen[-1].if_range) == ("bytes=40000-", None)


def test_a_part_longer_than_the_file_starts_anew(get, site, tmp_path):
    site.plan = [Step(drop_at=40_000)] + [Step(status=503)] * 20
    with pytest.raises(LmError):
        get()
    site.plan, site.files["/corpus.txt"] = [], CONTENT[:30_000]
    assert get() == CONTENT[:30_000]
    assert [seen.status for seen in site.seen[-2:]] == [416, 200]


def test_a_busy_server_is_asked_again_after_as_long_as_it_says(get, site, waits):
    site.plan = [Step(status=503), Step(status=429, headers={"Retry-After": "7"}), Step(status=500)]
    assert get() == CONTENT
    assert waits[1] == 7
    assert 0 < waits[0] <= 2 < waits[2] <= 8  # doubled, with jitter


def test_a_server_that_keeps_failing_is_given_up_and_the_part_kept(get, site, tmp_path, waits):
    site.plan = [Step(drop_at=40_000)] + [Step(status=502)] * 50
    with pytest.raises(LmError, match=r"502.*kept in .*corpus\.txt\.part") as error:
        get()
    assert type(error.value) is LmError and "\n" not in str(error.value)
    assert (tmp_path / "here" / "corpus.txt.part").stat().st_size == 40_000
    assert len(waits) == 9 and max(waits) <= 120
    site.plan = []
    assert get() == CONTENT


def test_a_wrong_checksum_is_refused_and_the_file_set_aside(get, site, tmp_path):
    site.files["/corpus.txt"] = b"an error page"
    with pytest.raises(DamagedFileError, match=r"expected .*set aside as .*corpus\.txt\.corrupt") as error:
        get(sha256=SHA256)
    assert "\n" not in str(error.value)
    assert names(tmp_path) == ["corpus.txt.corrupt"]
    assert (tmp_path / "here" / "corpus.txt.corrupt").read_bytes() == b"an error page"
    site.files["/corpus.txt"], site.etag = CONTENT, '"2"'
    assert get(sha256=SHA256) == CONTENT


def test_a_checksum_that_nobody_published_is_recorded_at_the_first_download(get, site, tmp_path):
    get()
    file = RemoteFile(site.url + "/corpus.txt")
    known = record(file, str(tmp_path / "here"))
    assert (known["sha256"], known["checksum"]) == (SHA256, "recorded at the first download")
    os.remove(tmp_path / "here" / "corpus.txt")
    site.files["/corpus.txt"], site.etag = b"something else", '"2"'
    with pytest.raises(DamagedFileError, match=r"recorded at the first download.*delete .*corpus\.txt\.json"):
        get()
    os.remove(tmp_path / "here" / "corpus.txt.json")
    assert get() == b"something else"


def test_a_cached_file_that_changed_is_refused_and_set_aside(get, tmp_path):
    get()
    (tmp_path / "here" / "corpus.txt").write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(DamagedFileError, match="set aside"):
        get()
    assert get() == CONTENT


def test_a_file_put_there_by_hand_needs_no_network(get, site, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "corpus.txt").write_bytes(CONTENT)
    assert get(sha256=SHA256) == CONTENT
    assert site.seen == []


def test_another_size_than_the_known_one_is_refused_before_the_transfer(get, site, tmp_path):
    site.files["/corpus.txt"] = CONTENT[:50_000]
    with pytest.raises(DamagedFileError, match=r"50,000 bytes, expected 100,000.*truncated"):
        get(bytes=100_000)
    assert names(tmp_path) == []


def test_a_length_that_never_arrives_is_not_taken_for_the_whole(get, site, tmp_path):
    site.plan = [Step(length=200_000)] + [Step(ignore_range=True, length=200_000)] * 20
    with pytest.raises(LmError, match="dropped at 100,000 of 200,000"):
        get()
    assert "corpus.txt" not in names(tmp_path)


def test_without_a_length_the_end_of_the_connection_is_the_end(get, site):
    site.plan = [Step(no_length=True)]
    assert get() == CONTENT


def test_without_a_length_a_dropped_connection_is_caught_by_the_size_or_the_checksum(get, site):
    site.plan = [Step(no_length=True, drop_at=40_000)]
    with pytest.raises(DamagedFileError, match="sha256"):
        get(sha256=SHA256)
    site.plan = [Step(no_length=True, drop_at=40_000)]
    with pytest.raises(DamagedFileError, match="40,000 bytes, expected 100,000"):
        get(bytes=100_000)


def test_a_missing_file_and_no_access_are_usage_errors(get, site):
    for step, status in ((Step(), 404), (Step(status=403), 403)):
        site.plan = [step]
        with pytest.raises(UsageError, match=f"answered {status}"):
            get("/nowhere.txt")
    assert len(site.seen) == 2


def test_a_url_that_is_none_and_a_redirect_without_end_are_one_line(get, site, tmp_path, waits):
    site.plan = [Step(status=302, headers={"Location": "/corpus.txt"})] * 20
    for broken in (lambda: get(), lambda: fetch(RemoteFile("http://x y/a.txt"), str(tmp_path / "other"))):
        with pytest.raises(UsageError, match="cannot download") as error:
            broken()
        assert "\n" not in str(error.value)
    assert waits == []


def test_a_redirect_keeps_the_range(get, site):
    site.files["/there.txt"] = CONTENT
    here = Step(status=302, headers={"Location": "/there.txt"})
    site.plan = [here, Step(drop_at=40_000), here]
    assert get() == CONTENT
    assert [seen.range for seen in site.seen] == [None, None, "bytes=40000-", "bytes=40000-"]


def test_downloads_are_not_put_on_an_object_store(site):
    with pytest.raises(UsageError, match="LM_CACHE"):
        fetch(RemoteFile(site.url + "/corpus.txt"), "gs://bucket/downloads")


def test_no_network_is_one_line_at_once(tmp_path, waits):
    for url in ("http://127.0.0.1:9/a.txt", "http://no-such-host.invalid/a.txt"):
        with pytest.raises(UsageError, match="cannot download http.*Check the network") as error:
            fetch(RemoteFile(url), str(tmp_path))
        assert "\n" not in str(error.value)
    assert waits == []


def test_a_network_that_goes_away_in_between_is_waited_for(get, site, waits, monkeypatch):
    real, calls = urllib.request.OpenerDirector.open, []

    def flaky(*arguments, **named):
        calls.append(1)
        if len(calls) in (2, 3):
            raise urllib.error.URLError(OSError(errno.ENETUNREACH, "Network is unreachable"))
        return real(*arguments, **named)

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", flaky)
    site.plan = [Step(drop_at=40_000)]
    assert get() == CONTENT
    assert len(waits) == 3


def test_proxies_are_taken_from_the_environment(site, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", site.url)
    fetch(RemoteFile("http://corpora.invalid/corpus.txt"), str(tmp_path))
    assert (tmp_path / "corpus.txt").read_bytes() == CONTENT


def test_too_little_room_is_refused_before_the_transfer(get, site, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(LmError, match="needs 100,000 more bytes and the disk has 1,000"):
        get()
    assert names(tmp_path) == []


def test_a_disk_that_fills_up_is_one_line_and_the_part_is_kept(get, site, tmp_path, monkeypatch):
    class Full:
        def __init__(self, path, mode):
            self.file, self.left = open(path, mode), 30_000  # noqa: SIM115

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def flush(self):
            self.file.flush()

        def write(self, chunk):
            self.file.write(chunk[: self.left])
            self.left -= len(chunk)
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(download, "open", Full, raising=False)
        with pytest.raises(LmError, match="cannot write .*No space left.*the same command continues"):
            get()
    assert get() == CONTENT
    assert site.seen[1].range == "bytes=30000-"


def test_two_that_want_one_file_download_it_once(get, site):
    results, stages = [], []
    site.plan = [Step(drop_at=50_000)]

    def work():
        results.append(get(progress=lambda stage, *_: stages.append(stage)))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [CONTENT] * 3
    assert sum(seen.sent for seen in site.seen) == len(CONTENT)


def test_names_are_safe_file_names():
    for url, name in {
        "https://x.org/a/b.txt?download=true": "b.txt",
        "https://x.org/%2e%2e%2f..%2fetc": "etc",
        "https://x.org/.hidden": "hidden",
        "https://x.org": "file",
        "https://x.org/a%20b:c.txt": "a_b_c.txt",
    }.items():
        assert RemoteFile(url).name == name
