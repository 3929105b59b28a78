"""A PostgreSQL of a test's own: no root, no TCP, gone afterwards."""

import contextlib
import getpass
import os
import pathlib
import shutil
import subprocess
import tempfile

NOBODY = 65534
BINARIES = next(iter(sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
if BINARIES is None and (found := shutil.which("initdb")):
    BINARIES = pathlib.Path(found).parent


@contextlib.contextmanager
def server():
    """Start one, and give its URL."""
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:  # short: the path of a socket has 107 bytes at most
        user, prefix = getpass.getuser(), []
        if os.geteuid() == 0:  # it refuses root
            user, prefix = "nobody", ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
            os.chown(folder, NOBODY, NOBODY)
        data = f"{folder}/data"

        def run(program, *arguments):
            command = [*prefix, str(BINARIES / program), "-D", data, *arguments]
            subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)

        run("initdb", "-U", user, "-A", "trust", "--no-sync", "--no-instructions")
        options = f"-k {folder} -c listen_addresses= -c fsync=off"
        run("pg_ctl", "start", "-w", "-o", options, "-l", f"{folder}/log")
        try:
            yield f"postgresql+psycopg://{user}@/postgres?host={folder}"
        finally:
            run("pg_ctl", "stop", "-w", "-m", "immediate")
