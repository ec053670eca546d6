import time

import numpy as np
import pytest

from evlgen.errors import UserError
from evlgen.runtime.arrays import read_arrays, write_arrays

ARRAYS = {"a": np.arange(6, dtype=np.int16).reshape(2, 3), "name": np.array("coco_val"), "x": np.array([0.5])}


def test_arrays_come_back_with_their_dtypes(tmp_path):
    write_arrays(tmp_path / "a.npz", ARRAYS)
    found = read_arrays(tmp_path / "a.npz")
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_bytes_do_not_depend_on_the_time(tmp_path, monkeypatch):
    write_arrays(tmp_path / "a.npz", ARRAYS)
    later = time.time() + 1e6
    monkeypatch.setattr(time, "time", lambda: later)
    write_arrays(tmp_path / "b.npz", ARRAYS)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_no_pickles_and_no_leftovers(tmp_path):
    (tmp_path / ".a.npz.123.tmp").write_bytes(b"of a writer that was killed")
    write_arrays(tmp_path / "a.npz", ARRAYS)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    with pytest.raises(ValueError, match=r"[Oo]bject arrays"):
        write_arrays(tmp_path / "b.npz", {"x": np.array([None])})
    np.savez(tmp_path / "c.npz", x=np.array([None]))
    with pytest.raises(UserError, match="damaged"):
        read_arrays(tmp_path / "c.npz")


@pytest.mark.parametrize("keep", [0, 10, 100, -1])
def test_a_damaged_file_is_named(tmp_path, keep):
    path = tmp_path / "a.npz"
    write_arrays(path, ARRAYS)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"a\.npz: damaged"):
        read_arrays(path)
    with pytest.raises(UserError, match=r"z\.npz: missing"):
        read_arrays(tmp_path / "z.npz")
