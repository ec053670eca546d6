"""Profiles as any editor saves them."""

from __future__ import annotations

from pathlib import Path

import pytest

from evlgen.errors import UserError
from sweeps.slurm.profile import read_profile

TEXT = '# Rechner "größer"\r\npartition = "gpu"\r\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_profile_may_have_any_mark_and_ends_of_lines(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "my.toml").write_bytes(TEXT.encode(encoding))
    assert read_profile(str(tmp_path / "my.toml"), {}).partition == "gpu"


def test_a_profile_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_bytes(TEXT.encode("latin-1"))
    with pytest.raises(UserError, match=r"--cluster .*my\.toml: is not UTF-8 at byte 13; save it as UTF-8"):
        read_profile(str(tmp_path / "my.toml"), {})
