"""The command line of ``sweeps/run.py``, as typed."""

from __future__ import annotations

import pytest

from sweeps import run
from sweeps.arguments import COMMANDS, parse


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("", "give an experiment or a command; sweeps/run.py --help lists them"),
        ("--scale smoke", "give an experiment or a command"),
        ("tabel1", "did you mean table1?"),
        ("statsu table1", "experiment 'statsu': no such experiment; there are: table1, table2"),
        ("statsu", "did you mean status?"),
        ("table1 table2 table1 --dry-run", "table1 table2 table1: table1 is given 2 times; give it once"),
        ("all table1 --dry-run", "all table1: all takes every experiment; give it alone"),
        ("status table1 tabel2", "did you mean table2?"),
        ("show table1 0123", "show table1 0123: give runs or experiments, not both"),
        ("table1 --scale smoke --scale mini", "--scale: given 2 times; give it once"),
        ("table1 --seeds 1 --seeds=2", "--seeds: given 2 times; give it once"),
        ("table1 --dry-run --dry-run", "--dry-run: given 2 times; give it once"),
        ("table1 --set optim.lr=1 --set optim.lr=2", "--set optim.lr: given 2 times; give it once"),
        (
            "table1 --set seed=5",
            "--set seed=5: changes nothing: seeds are 0, 1, ..., as many as",
        ),
        ("table1 --rows=", "--rows: is empty; give something, or leave it out"),
        ("table1 --seeds abc", "--seeds abc: must be a whole number"),
        ("table1 --seeds 1,1", "--seeds 1,1: must be a whole number"),
        ("table1 --seeds 1_0", "--seeds 1_0: must be a whole number"),
        ("table1 --seeds 99999999", "--seeds 99999999: at most 10,000 can be asked for"),
        ("table1 --set connector.r=6", "no such key in the row 'BLIP-2, two stages, 104M, 250K + 80K'"),
        (
            "table1 --set connector.r=6",
            "only in others such as 'EVLGen, 104M, 150K': choose them with",
        ),
        ("status tabel1", "did you mean table1?"),
        ("table1 --sed 3", "--sed: no such flag; did you mean --seeds?"),
        ("table1 --dry_run", "--dry_run: no such flag; did you mean --dry-run?"),
        ("table1 --frobnicate", "--frobnicate: no such flag; sweeps/run.py --help lists them"),
        (
            "status table1 --workers 2",
            "--workers: not a flag of this command; sweeps/run.py status --help lists",
        ),
        ("cancel table1 --workers 3", "--workers: not a flag of this command; sweeps/run.py cancel --help"),
        ("status --dry-runn", "--dry-runn: no such flag; sweeps/run.py status --help lists them"),
        ("status --dry-run", "--dry-run: not a flag of this command; sweeps/run.py status --help"),
        (
            "table1 --scale smok",
            "--scale smok: no such scale; there are: smoke, mini, bridge, paper; did you",
        ),
        ("table1 --workers -1", "--workers -1: at least 1 is needed"),
        ("table1 --workers two", "--workers two: must be a whole number"),
        ("table1 --seeds 0", "--seeds 0: at least 1 is needed"),
        (
            "table1 --executor slrum",
            "--executor slrum: no such executor; there are: local, slurm; did you mean",
        ),
        ("table1 --set", "--set: expected one argument"),
        ("table1 --set optim.learnrate=1", "did you mean optim."),
        ("table1 --set lr=1e-3", "did you mean optim.lr?"),
        ("table1 --gpus 8", "--gpus: asks a cluster for something; add --executor slurm, or leave it out"),
        ("table1 --cluster no.toml", "--cluster: asks a cluster for something; add --executor slurm"),
        ("table1 --executor slurm --cluster no.toml", "--cluster no.toml: No such file or directory"),
        (
            "table1 --executor slurm --dry-run --cluster no.toml",
            "--cluster no.toml: No such file or directory",
        ),
        ("wait table1 --cluster no.toml", "--cluster no.toml: No such file or directory"),
        ("list table1", "list table1: list takes no argument"),
        ("foundation --seeds 3", "--seeds: not a flag of this command"),
        ("logs", "logs: of what? Give a run's id"),
        ("show", "show: of what? Give one of table1, table2"),
        ("retry", "retry: of what? Give one of table1, table2"),
        ("show 0123 --scale mini", "show 0123: --scale: is for experiments, not for one run"),
        ("captions table", "captions table: no run in"),
        ("captions table", "did you mean table"),
        ("table5 --seeds 3", "--seeds: table5 trains nothing, so this changes nothing; leave it out"),
        ("table5 --workers 3", "--workers: table5 trains nothing"),
        (
            "captions table5",
            "captions table5: table5 trains nothing, so there are no captions; try show table5",
        ),
    ],
)
def test_what_is_unknown_or_would_be_ignored_is_refused(
    typed: str,
    message: str,
    tmp_path: object,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("EVLGEN_RUNS", f"{tmp_path}/runs")
    assert run.main(typed.split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_flags_stand_before_and_after_the_experiment() -> None:
    for typed in (
        "table1 --scale smoke --seeds 2",
        "--scale smoke table1 --seeds 2",
        "--seeds=2 --scale=smoke table1",
    ):
        arguments = parse(typed.split())
        assert (arguments.command, arguments.target) == ("run", "table1")
        assert (arguments.scale, arguments.seeds) == ("smoke", 2)
        assert arguments.typed == {"scale", "seeds"}
    arguments = parse("status --set optim.lr=1 --rows x table1 --set connector.r=8".split())
    assert (arguments.command, arguments.target, arguments.rows) == ("status", "table1", "x")
    assert arguments.set == ("optim.lr=1", "connector.r=8")
    assert parse(["status"]).target == ""
    assert parse("table1 --executor slurm --gpus 2 --workers 4".split()).profile_changes == {
        "gpus": 2,
        "workers": 4,
    }


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_a_help_of_its_own(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for flag in ("-h", "--help"):
        with pytest.raises(SystemExit) as exit:
            run.main([*command.split(), flag])
        assert exit.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: sweeps/run.py {command or 'EXPERIMENT'}" in text
    assert max(map(len, text.splitlines())) < 80
    if command:
        words = " ".join(text.split())
        assert COMMANDS[command].help[1:] in words
        assert COMMANDS[command].details in words
        assert ("--dry-run" in text) == (command in ("",))
    else:
        assert all(f"\n  {name} " in text for name in COMMANDS)
