"""Start of a SLURM job's Python: ``start.py ARGUMENTS`` is ``python ARGUMENTS`` with two signals blocked.

Importing takes a while, on a slow file system many seconds, and a signal that comes before its handler is set
would end the job as a failure. So both wait, across the exec, until `sweeps.slurm.job.Chunk` unblocks them.
"""

import os
import signal
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR2))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
