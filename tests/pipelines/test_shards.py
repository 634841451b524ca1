import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from shard_files import png, write_shard

from vergence.pipelines import cli
from vergence.pipelines.shards import preview

NOISE = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)


@pytest.fixture(autouse=True)
def _state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERGENCE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def shards(tmp_path: Path) -> str:
    write_shard(tmp_path / "s/train-000000.tar", [(f"k{i}", {"png": png(NOISE[i])}) for i in range(20)])
    return "s/train-*.tar"


def test_pack_index_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["shards", "pack", "sklearn:digits", "d", "--per-shard", "1000"]) == 0
    assert (
        capsys.readouterr().out
        == "d/train-{000000..000001}.tar: 2 shards written: 1,797 samples, 10 classes\n"
    )
    assert cli.main(["shards", "pack", "sklearn:digits", "d", "--per-shard", "1000"]) == 0
    assert "exists already, nothing to do" in capsys.readouterr().out
    assert cli.main(["shards", "index", "d/train-{000000..000001}.tar"]) == 0
    assert "1,797 samples in 2 shards (1,797 .cls, 1,797 .png)" in capsys.readouterr().out
    assert cli.main(["shards", "check", "d"]) == 0
    assert capsys.readouterr().out == "d: 1,797 samples in 2 shards: all can be read\n"


def test_pack_tells_what_it_did_not_use_and_takes_the_column_that_is_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"bytes": png(NOISE[0]), "path": None}] * 2
    pq.write_table(pa.table({"image": rows, "fine_label": ["b", "a"]}), tmp_path / "a.parquet")
    assert cli.main(["shards", "pack", "a.parquet", "plain"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  no classes: no column label; --label COLUMN takes them from another",
        "  columns not used: fine_label",
    ]
    assert cli.main(["shards", "pack", "a.parquet", "fine", "--label", "fine_label"]) == 0
    assert capsys.readouterr().out == "fine/train-000000.tar: 1 shards written: 2 samples, 2 classes\n"
    assert json.loads((tmp_path / "fine/classes.json").read_text()) == ["a", "b"]


def test_check_lists_what_is_broken_and_exits_1(
    tmp_path: Path, shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = png(NOISE[0])
    write_shard(tmp_path / "s/train-000001.tar", [("good", {"png": data}), ("cut", {"png": data[:500]})])
    path = write_shard(tmp_path / "s/train-000002.tar", [("a", {"png": data})])
    path.write_bytes(path.read_bytes()[:900])
    assert cli.main(["shards", "check", "s"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{path}  (whole shard)  the tar is truncated")
    assert lines[1].startswith(f"{tmp_path}/s/train-000001.tar  cut  ")
    assert lines[2:] == ["s: 22 samples in 3 shards: 2 broken"]


def test_index_and_check_tell_what_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = png(NOISE[0])
    samples = [
        (f"k{i}", {"png": data, "seg.png": data, "cls": b"ant bee"[: 3 + 4 * (i % 2)]}) for i in range(4)
    ]
    write_shard(tmp_path / "t/a.tar", samples)
    write_shard(tmp_path / "t/empty.tar", [])
    write_shard(tmp_path / "t/below/b.tar", samples)
    (tmp_path / "t/two\nlines.tar").symlink_to("a.tar")
    assert cli.main(["shards", "index", "t"]) == 0
    assert capsys.readouterr().out.splitlines()[3:] == [
        "2 classes: ant, ant bee",
        "  t: left out: tars in folders below (FOLDER/**/*.tar takes them) (1: below/b.tar)",
        r"  t: left out: links to a shard that is taken (1: two\nlines.tar)",
        "  shards skipped: without images, of 2 (1: empty.tar)",
        "  images of other views, not used: .seg.png (4)",
    ]
    assert cli.main(["shards", "check", "t"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{tmp_path}/t/empty.tar  (whole shard)  the tar holds no images (no files)")
    assert lines[1] == "t: 4 samples in 2 shards: 1 broken"
    assert lines[-1] == "  images of other views, not used: .seg.png (4)"


def test_names_that_no_terminal_can_print(tmp_path: Path) -> None:
    """On a strict ASCII terminal, too: an escaped line and no traceback."""
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    write_shard(tmp_path / "a.tar", [("grün\nx", {"png": png(NOISE[0])[:40]})])
    os.rename(tmp_path / "a.tar", folder + b"/\xfcber.tar")
    for encoding in ("ascii", "utf-8"):
        done = subprocess.run(
            [sys.executable, "-m", "vergence.pipelines.cli", "shards", "check", b"caf\xe9"],
            capture_output=True,
            env=os.environ | {"PYTHONIOENCODING": f"{encoding}:strict", "PYTHONPATH": ":".join(sys.path)},
        )
        assert (done.returncode, done.stderr) == (1, b"")
        broken, summary = done.stdout.splitlines()
        assert rb"caf\xe9/\xfcber.tar  gr" in broken
        assert summary == rb"caf\xe9: 1 samples in 1 shards: 1 broken"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index", "missing-*.tar"], "missing-*.tar: matches no shard"),
        (["pack", "empty", "out"], "empty: no images below this folder"),
        (["pack", "sklearn:iris", "out"], "sklearn:iris: only sklearn:digits"),
        (["preview", "s", "--recipe", "simclr-cifar", "--out", "a.png"], "simclr-cifar10"),
        (["preview", "s", "--recipe", "simclr-cifar10", "--out", "a.jpg"], "a file that ends in .png"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    tmp_path: Path, shards: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert cli.main(["shards", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_preview_draws_originals_and_views(tmp_path: Path, shards: str) -> None:
    assert preview(shards, "simclr-cifar10", tmp_path / "sheets/a.png", count=5) == 5
    sheet = np.asarray(Image.open(tmp_path / "sheets/a.png"))
    assert sheet.std() > 20
    assert preview(shards, "simclr-cifar10", tmp_path / "again.png", count=5) == 5
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "again.png")), sheet)
    preview(shards, "simclr-cifar10", tmp_path / "b.png", count=5, epoch=1)
    assert (np.asarray(Image.open(tmp_path / "b.png")) != sheet).any()


def test_preview_takes_settings_after_its_options_and_refuses_what_is_none(
    tmp_path: Path, shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["shards", "preview", shards, "--recipe", "simclr-cifar10", "--count", "3", "--out"]
    sheets = []
    for name, more in (("a", []), ("b", ["views.0.size=64"]), ("c", ["views.0.size=64", "views.0.count=3"])):
        assert cli.main([*command, f"{tmp_path}/{name}.png", *more]) == 0
        sheets.append(np.asarray(Image.open(tmp_path / f"{name}.png")))
    assert (sheets[0] != sheets[1]).any()
    assert sheets[2].shape[1] > sheets[1].shape[1]  # a column more
    capsys.readouterr()
    assert cli.main([*command, f"{tmp_path}/d.png", "views.0.siz=64"]) == 2
    assert "views.0.siz is not a setting (did you mean size?" in capsys.readouterr().err
    assert not (tmp_path / "d.png").exists()


def test_help_teaches_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom vergence.pipelines import cli\n"
        "try: cli.main(['shards', 'pack', '--help'])\nexcept SystemExit: pass\n"
        "import json; print(json.dumps(sorted({'torch', 'numpy', 'pyarrow', 'cv2', 'ray'} & set(sys.modules))))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(out.splitlines()[-1]) == []
    assert "vergence shards pack 'cifar10/train-*.parquet' cifar10/" in out
