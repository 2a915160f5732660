"""A stand-in for SLURM's ``srun``: runs a command here, once for each of the nodes that its options choose."""

import argparse
import os
import signal
import subprocess
import sys

NODES = ("127.0.0.1", "127.0.0.2")


def main() -> int:
    """Run the command, and return the highest status as srun does."""
    parser = argparse.ArgumentParser(prog="srun", allow_abbrev=False)
    parser.add_argument("--overlap", action="store_true", required=True)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--ntasks", type=int, required=True)
    parser.add_argument("--nodelist", default=",".join(NODES))
    parser.add_argument("--exclude", default="")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    chosen = [node for node in given.nodelist.split(",") if node not in given.exclude.split(",")]
    assert len(chosen) == given.nodes == given.ntasks, given
    assert os.environ["SRUN_CPUS_PER_TASK"], "the tasks would have one core each"
    tasks = [subprocess.Popen(given.command, env=os.environ | {"SLURMD_NODENAME": node}) for node in chosen]
    signal.signal(signal.SIGTERM, lambda number, _: [task.send_signal(number) for task in tasks])
    return max(task.wait() % 256 for task in tasks)


if __name__ == "__main__":
    sys.exit(main())
