"""Several ingests at once for `test_backfills`: forks a process for each range `FIRST:LAST` of positions in DAYS.

    python -m recsys_assets_tests.backfill_worker HOME 0:4 2:7 ...

Ends with the number of processes that failed. Forking after the imports spares each process their seconds.
"""

import os
import sys
import traceback
from pathlib import Path

from recsys_assets.definitions import defs  # noqa: F401  # before the fork
from recsys_assets.pipeline import Pipeline
from recsys_assets_tests.graph import DAYS, INGEST, run


def main() -> None:
    home, ranges = Path(sys.argv[1]), [tuple(map(int, each.split(":"))) for each in sys.argv[2:]]
    processes = []
    for first, last in ranges:
        pid = os.fork()
        if not pid:
            code = 1
            try:
                run(Pipeline.open(home), INGEST, DAYS[first : last + 1])
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        processes.append(pid)
    sys.exit(sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0 for pid in processes))


if __name__ == "__main__":
    main()
