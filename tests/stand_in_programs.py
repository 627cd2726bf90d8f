"""Programs of a cluster, SLURM's among them, as shell scripts that note what they were asked."""

import os
import time


class StandIns:
    """A folder of programs that come first on the PATH, and a folder ``out`` ($OUT) for what they write.

    Args:
        top: where both are made.
        programs: name to shell script.
    """

    def __init__(self, top, programs):
        folder, self.out = top / "bin", top / "out"
        folder.mkdir()
        self.out.mkdir()
        for name, text in programs.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        self.environment = {"PATH": f"{folder}:{os.environ['PATH']}", "OUT": str(self.out)}

    def wait_for(self, name):
        """Until a program has written this file."""
        deadline = time.monotonic() + 30
        while not (self.out / name).exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
