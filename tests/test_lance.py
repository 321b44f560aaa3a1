"""Importing LanceDB: what is left out, and that everything is there when it is needed after all."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from ragctl.adapters.base import IndexSpec
from ragctl.adapters.local import LocalStore
from ragctl.records import VectorRecord


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = LocalStore(tmp_path, "papers")
    store.create(IndexSpec(dimension=2, metric="cosine", embedder="compass/1"))
    return store


def run(script: str, *arguments: str) -> str:
    """What a script prints in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_a_query_loads_none_of_it(store: LocalStore, tmp_path: Path) -> None:
    """A process that only searches loads nothing of what makes the import slow."""
    store.put([VectorRecord("a", np.array([1, 0], np.float32), {"text": "cold winds", "year": 2024})])
    store.finish()
    printed = run(
        """
        import sys
        from pathlib import Path
        import numpy as np
        from ragctl.adapters.base import SearchRequest
        from ragctl.adapters.lance import STAND_INS
        from ragctl.adapters.local import LocalStore
        from ragctl.filters import normalise

        store = LocalStore(Path(sys.argv[1]), "papers")
        store.describe()
        east = np.array([1, 0], np.float32)
        hits = store.search(SearchRequest("hybrid", 5, east, "wind", normalise({"year": 2024})))
        print([hit.key for hit in hits], [name for name in (*STAND_INS, "pandas") if name in sys.modules])
        """,
        str(tmp_path),
    )
    assert printed == "['a'] []\n"


def test_what_was_left_out_is_there_when_used() -> None:
    """Classes that LanceDB has taken from a stand-in make real instances, and other importers get the real thing."""
    printed = run(
        """
        from ragctl.adapters.lance import import_lancedb

        import_lancedb()
        from lancedb import db, common
        response = db.ListTablesResponse(tables=["a"])
        print(type(response).__module__, response.tables)
        print(common.pa.dataset.Dataset.__name__)

        import lance_namespace, overrides
        print(lance_namespace.ListTablesRequest(limit=3).limit, overrides.overrides.__name__)
        """
    )
    assert printed == (
        "lance_namespace_urllib3_client.models.list_tables_response ['a']\nDataset\n3 overrides\n"
    )


def test_the_plain_import_takes_over() -> None:
    """A LanceDB that does not get along with the stand-ins is imported as it is, and works."""
    printed = run(
        """
        import sys
        import tempfile
        from ragctl.adapters import lance

        def broken(module, name):
            raise TypeError(f"{module}.{name} is not what it was")

        lance._placeholder = broken
        lancedb = lance.import_lancedb()
        print([name for name in lance.STAND_INS if name not in sys.modules])
        with tempfile.TemporaryDirectory() as folder:
            table = lancedb.connect(folder).create_table("t", [{"a": 1}])
            print(table.count_rows(), lance.import_lancedb() is lancedb)
        """
    )
    assert printed == "[]\n1 True\n"
