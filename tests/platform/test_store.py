"""Objects by URL, against moto's S3 and a web server; faults are real answers of real servers."""

import os
import threading
import time
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import obstore
import pytest
from botocore import credentials as botocore_credentials
from object_servers import Answer, Faults, s3_server, web_server
from obstore.store import HTTPStore, MemoryStore

from vergence.platform import store as stores
from vergence.platform.errors import UserError
from vergence.platform.store import Away, Changed, NotThere, Object, Store, is_url, name_of, store_of

DATA = os.urandom(3 << 20)


@pytest.fixture
def s3(s3_environment: None, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(stores, "FIRST_PAUSE_S", 0.01)
    return Store("s3://bucket", patience_s=5)


def test_ranges_are_read_in_the_order_in_which_they_are_asked_for(s3: Store) -> None:
    s3.put("s3://bucket/a/x.tar", DATA)
    found = s3.stat("s3://bucket/a/x.tar")
    assert (found.url, found.size) == ("s3://bucket/a/x.tar", len(DATA))
    asked = [(1_000_000, 5), (7, 3), (0, 0), (len(DATA) - 4, 4)]
    assert [*s3.read(found.url, asked, found.version)] == [DATA[at : at + size] for at, size in asked]
    assert b"".join(s3.stream(found)) == DATA == s3.get(found.url)[0]


def test_pieces_of_a_long_object_make_the_whole(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "PIECE", 1 << 20)
    s3.put("s3://bucket/long", DATA[:-1])
    pieces = [len(piece) for piece in s3.stream(s3.stat("s3://bucket/long"))]
    assert pieces == [1 << 20, 1 << 20, (1 << 20) - 1]
    s3.put("s3://bucket/empty", b"")
    assert [*s3.stream(s3.stat("s3://bucket/empty"))] == []


def test_a_folder_is_listed_in_the_order_of_names(s3: Store) -> None:
    for name in ("b.tar", "a.tar", "a.tar.idx"):
        s3.put(f"s3://bucket/folder/{name}", b"x")
    s3.put("s3://bucket/folder-2/c.tar", b"x")
    names = [found.url for found in s3.list("s3://bucket/folder")]
    assert names == [f"s3://bucket/folder/{name}" for name in ("a.tar", "a.tar.idx", "b.tar")]


def test_of_two_who_write_only_what_is_not_there_one_wins(s3: Store) -> None:
    first = s3.put("s3://bucket/lock", b"1", None)
    with pytest.raises(Changed):
        s3.put("s3://bucket/lock", b"2", None)
    second = s3.put("s3://bucket/lock", b"3", first)
    with pytest.raises(Changed):
        s3.put("s3://bucket/lock", b"4", first)
    assert s3.get("s3://bucket/lock") == (b"3", Object("s3://bucket/lock", 1, second))
    s3.delete("s3://bucket/lock")
    s3.delete("s3://bucket/lock")
    with pytest.raises(NotThere):
        s3.stat("s3://bucket/lock")


def test_an_object_that_has_changed_is_not_read(s3: Store) -> None:
    version = s3.put("s3://bucket/changing", b"first")
    s3.put("s3://bucket/changing", b"other")
    with pytest.raises(Changed, match="has changed"):
        s3.read("s3://bucket/changing", [(0, 5)], version)


def test_what_a_listing_calls_a_version_is_read_where_puts_compare_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As of Google's store, of which there is no server here: generations, which its listings lack."""
    memory = MemoryStore()
    monkeypatch.setattr(stores, "_opened", lambda *_, **__: memory)
    obstore.put(memory, "x.tar", b"0123")
    get = obstore.get

    def with_generation(*arguments: Any, **options: Any) -> Any:
        answer = get(*arguments, **options)
        return SimpleNamespace(meta=answer.meta | {"version": "17"}, bytes=answer.bytes)

    monkeypatch.setattr(obstore, "get", with_generation)
    google = Store("gs://bucket")
    [found] = google.list("gs://bucket")
    assert found == google.stat("gs://bucket/x.tar")
    assert google.read(found.url, [(1, 2)], found.version) == [b"12"]
    assert b"".join(google.stream(found)) == b"0123"
    assert google.get(found.url)[1].version == "17"


def test_what_fails_for_a_while_is_asked_for_again(s3: Store, faults: Faults) -> None:
    s3.put("s3://bucket/x", DATA)
    faults.errors = faults.busy = faults.resets = faults.halves = 0.1
    asked = [(i * 1000, 1000) for i in range(100)]
    assert [*s3.read("s3://bucket/x", asked)] == [DATA[at : at + size] for at, size in asked]
    assert s3.retries > 10


def test_a_store_that_stays_away_ends_in_one_line_within_the_patience(
    s3: Store, faults: Faults, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    s3.patience_s, faults.away = 0.5, True
    monkeypatch.setattr(stores, "SILENT_S", 0.1)
    began = time.monotonic()
    with pytest.raises(Away, match=r"s3://bucket/x: the store has not answered as it should for \d s"):
        s3.stat("s3://bucket/x")
    assert time.monotonic() - began < 3
    [told] = caplog.messages
    assert told.startswith("s3://bucket/x: does not answer as it should")
    assert told.endswith("; tried for 0.5 s")


def test_an_answer_that_does_not_end_is_given_up(
    s3: Store, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put("s3://bucket/slow", b"x" * 100)
    monkeypatch.setattr(stores, "ANSWER_S", 1)
    slow = Store("s3://bucket", patience_s=1)
    faults.one_byte_a_second = True
    with pytest.raises(Away):
        slow.read("s3://bucket/slow", [(0, 100)])


def test_what_asking_again_would_not_mend_ends_at_once(s3: Store, faults: Faults) -> None:
    with pytest.raises(UserError, match="there is no such bucket"):
        store_of("s3://other/x").list("s3://other/x")
    with pytest.raises(UserError, match=r"names no bucket; a URL is s3://BUCKET/FOLDER"):
        store_of("s3:///x")
    with pytest.raises(UserError, match=r"s3://\*\*\*@b/x: a URL holds no user or password"):
        store_of("s3://me:hush@b/x")
    assert len(faults.requests) == 1


def test_a_store_that_refuses_says_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with s3_server("closed", Refusing()) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=r"the store refuses .*403.*; set AWS_ACCESS_KEY_ID") as caught:
            Store("s3://closed").list("s3://closed/x")
    assert "secret" not in str(caught.value)


def test_a_store_whose_credentials_nobody_has_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOST", "ROOT", "IP"):
        monkeypatch.setenv(f"GCE_METADATA_{name}", "127.0.0.1:1")
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "AZURE_STORAGE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"no credentials are set, .*; set GOOGLE_APPLICATION_CREDENTIALS"):
        Store("gs://bucket").stat("gs://bucket/x")
    with pytest.raises(UserError, match=r"cannot be opened .*; set AZURE_STORAGE_ACCOUNT_NAME"):
        Store("az://container")


class Refusing(Faults):
    """A server that knows nobody."""

    def draw(self, request: str) -> str | None:
        return "refused"


def test_the_aws_tools_own_files_are_read(
    s3_environment: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = one\naws_secret_access_key = two\n")
    (tmp_path / "config").write_text("[profile lab]\nregion = eu-central-1\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    lab = Store("s3://bucket")
    lab.put("s3://bucket/of-a-profile", b"x")
    assert lab.stat("s3://bucket/of-a-profile").size == 1


def test_a_web_server_is_read_and_cannot_be_listed(tmp_path: Path) -> None:
    (tmp_path / "two words.tar").write_bytes(DATA)
    with web_server(tmp_path) as address:
        web = store_of(f"{address}/x")
        found = web.stat(f"{address}/two%20words.tar")
        assert [*web.read(found.url, [(5, 7)], found.version)] == [DATA[5:12]]
        with pytest.raises(UserError, match="name the objects"):
            web.list(f"{address}/")
        with pytest.raises(NotThere):
            web.stat(f"{address}/none.tar")


@pytest.mark.parametrize(
    ("url", "says", "message"),
    [
        ("s3://bucket/a//b.tar", None, r"a//b\.tar: no object is reached by such a name"),
        ("s3://bucket/x", Answer(301, {}, b""), r"x: the bucket is in another region .*; set AWS_REGION"),
        ("s3://buck[et/x", None, r"s3://buck\[et/x: is no URL"),
    ],
)
def test_what_is_wrong_with_a_name_or_region_is_said_at_once(
    s3: Store, faults: Faults, url: str, says: Answer | None, message: str
) -> None:
    faults.says = says
    began = time.monotonic()
    with pytest.raises(UserError, match=message):
        store_of(url, patience_s=5).stat(url)
    assert time.monotonic() - began < 2
    assert len(faults.requests) <= 1


def test_an_upload_that_the_store_was_tired_of_is_sent_again(s3: Store, faults: Faults) -> None:
    """S3 answers 400 where the bytes of a request do not come for a while."""
    faults.says = Answer(400, {}, b"<Error><Code>RequestTimeout</Code><Message>idle</Message></Error>")
    awake = threading.Timer(0.2, setattr, (faults, "says", None))
    awake.start()
    s3.put("s3://bucket/slowly", b"x")
    awake.join()
    assert s3.get("s3://bucket/slowly")[0] == b"x"


def test_a_listing_of_many_pages_asks_for_a_page_again_not_for_all(
    s3: Store, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "5")
    for i in range(40):
        s3.put(f"s3://bucket/pages/{i:02d}", b"")
    faults.requests.clear()
    faults.errors = 0.5
    assert len(s3.list("s3://bucket/pages")) == 40
    assert len(faults.requests) < 40


def test_names_of_all_kinds_come_back_from_a_listing(s3: Store) -> None:
    names = [
        "two words",
        "a+b",
        "50%",
        "%20",
        "#1",
        "what?",
        "größe",
        "[v1]",
        "~a&b=c;d",
        "{x}",
        "a:b@c,d!$'()*",
    ]
    for name in names:
        s3.put(f"s3://bucket/odd/{name}", name.encode())
    found = s3.list("s3://bucket/odd")
    assert sorted(name_of(each.url) for each in found) == sorted(names)
    for each in found:
        assert s3.get(each.url)[0].decode() == name_of(each.url)
        assert s3.stat(each.url) == each


def test_a_server_that_knows_no_ranges_is_refused_at_once(tmp_path: Path) -> None:
    faults = Faults()
    with web_server(tmp_path, faults) as address:
        faults.says = Answer(200, {"ETag": '"1"'}, DATA)
        with pytest.raises(UserError, match=r"the store cannot do this .*Range request not supported"):
            Store(address, patience_s=5).read(f"{address}/x", [(5, 7)])
        assert len(faults.requests) == 1


@pytest.mark.parametrize("start", [0, 6])
def test_bytes_of_another_place_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int) -> None:
    monkeypatch.setattr(stores, "FIRST_PAUSE_S", 0.01)
    faults = Faults()
    with web_server(tmp_path, faults) as address:
        about = {"ETag": '"1"', "Content-Range": f"bytes {start}-{start + 6}/{len(DATA)}"}
        faults.says = Answer(206, about, DATA[start : start + 7])
        with pytest.raises(Away):
            Store(address, patience_s=0.1).read(f"{address}/x", [(5, 7)])


def test_where_a_server_sends_its_clients_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """To another address for a while, which holds a signature."""
    monkeypatch.setattr(stores, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(stores, "SILENT_S", 0)
    faults = Faults()
    with web_server(tmp_path, faults) as address:
        faults.says = Answer(302, {"Location": "http://127.0.0.1:1/x?X-Amz-Signature=hush"}, b"")
        with pytest.raises(Away) as caught:
            Store(address, patience_s=0.1).stat(f"{address}/x")
    assert "hush" not in caplog.text + str(caught.value)
    assert caplog.messages


def test_a_web_server_is_one_whoever_keeps_it() -> None:
    """No credentials are asked for."""
    for host in ("https://bucket.s3.amazonaws.com", "https://me.blob.core.windows.net", "http://127.0.0.1:1"):
        assert isinstance(stores._opened(host), HTTPStore)


def test_credentials_that_end_are_asked_for_again_before_they_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """botocore hands out what is good for ten minutes at least."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = one\naws_secret_access_key = two\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    given = stores._own("s3://bucket")["credential_provider"]()
    good_for = timedelta(seconds=botocore_credentials.RefreshableCredentials._mandatory_refresh_timeout)
    assert given["expires_at"] <= datetime.now(UTC) + good_for


def test_a_url_is_no_path_and_one_of_another_kind_is_refused() -> None:
    assert [is_url(text) for text in ("s3://b/x", "http://h/x", "a/b.tar", "C:/x", "/s3:/x", "a b://x")] == [
        True, True, False, False, False, False
    ]  # fmt: skip
    with pytest.raises(UserError, match="no store is reached by hdfs://"):
        is_url("hdfs://host/x")


def test_a_store_that_is_not_installed_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore.store", None)
    with pytest.raises(UserError, match=r'pip install "vergence\[stores\]"'):
        Store(f"s3://not-opened-{next(count())}")
