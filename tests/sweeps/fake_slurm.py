"""Stand-ins for SLURM's commands, where a real SLURM cannot be brought to say something odd."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMANDS = {
    # The script comes last; what it is given is kept, and a line for squeue.
    "sbatch": """#!/bin/bash
n=$(($(cat "$FAKE/number" 2>/dev/null || echo 100) + 1)); echo $n > "$FAKE/number"
cp "${@: -1}" "$FAKE/script.$n"; env > "$FAKE/env.$n"
name=$(sed -n "s/^#SBATCH --job-name=//p" "$FAKE/script.$n" | tr -d "'")
where=$(sed -n "s/^#SBATCH --clusters=//p" "$FAKE/script.$n")
echo "${where:-here} $n|PENDING|Priority|$name" >> "$FAKE/jobs"
echo "Submitted batch job $n${where:+ on cluster $where}"
""",
    "squeue": """#!/bin/bash
env > "$FAKE/env.squeue"; echo "$*" >> "$FAKE/asked"
cat "$FAKE/head" 2>/dev/null
where=here; while [ $# -gt 0 ]; do if [ "$1" = -M ]; then where=$2; echo "CLUSTER: $2"; fi; shift; done
sed -n "s/^$where //p" "$FAKE/jobs" 2>/dev/null; exit 0
""",
    "scontrol": '#!/bin/bash\necho "MaxArraySize = 1001"\n',
    "scancel": '#!/bin/bash\necho "scancel $*" >> "$FAKE/cancelled"\n',
    "srun": "#!/bin/bash\n",
}


class FakeSlurm:
    """A folder with the commands, and a sweep of three seconds' planning to be queued through them."""

    sweep = ("table2", "--scale", "smoke", "--seeds", "1")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        for name, text in COMMANDS.items():
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        self.environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("SLURM_", "SBATCH_"))
            },
            "FAKE": str(folder),
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "EVLGEN_RUNS": str(folder / "runs"),
            "EVLGEN_RESULTS": str(folder / "results"),
            "EVLGEN_CACHE": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "80",
        }

    def run(
        self, *words: str, prefix: tuple[str, ...] = (), **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*prefix, sys.executable, str(ROOT / "sweeps" / "run.py"), *words],
            env={**self.environment, **variables},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=200,
        )

    def queue(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.run(*self.sweep, "--executor", "slurm", *words, **variables)

    def status(self, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.run("status", *self.sweep, **variables)

    @property
    def submitted(self) -> int:
        number = self.folder / "number"
        return int(number.read_text()) - 100 if number.exists() else 0

    @property
    def scripts(self) -> list[str]:
        return [path.read_text() for path in sorted(self.folder.glob("script.*"))]

    def text(self, name: str) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""
