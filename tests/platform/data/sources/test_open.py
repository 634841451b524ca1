from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_files import png

from vergence.platform.data.sources.open import open_source
from vergence.platform.errors import UserError

IMAGE = [{"bytes": png(np.zeros((2, 2, 3), np.uint8)), "path": None}]


def test_parquet_files_in_folders_below_folders_and_in_brackets(tmp_path: Path) -> None:
    for name in ("all [v1]/a.parquet", "all [v1]/deep/b.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"image": IMAGE}), tmp_path / name)
    assert open_source(f"{tmp_path}/all [v1]/*.parquet", None).num == 1
    assert open_source(f"{tmp_path}/all [v1]/**/*.parquet", None).num == 2


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "_SUCCESS").touch()
    with pytest.raises(UserError, match=r"_SUCCESS: neither a folder of images nor a \.parquet file"):
        open_source(f"{tmp_path}/*", None)
    with pytest.raises(UserError, match="no such file, folder or glob"):
        open_source(f"{tmp_path}/*.parquet", None)
