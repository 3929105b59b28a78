"""Public batteries on the generator: dieharder on the library's own words, others on a C copy checked against them.

    python benchmarks/generator/run.py                      everything but Crush: about an hour and a half of CPU time
    python benchmarks/generator/run.py --battery dieharder --order seed
    python benchmarks/generator/run.py --battery crush --order out    about an hour; TestU01's large battery
    python benchmarks/generator/run.py --battery practrand --size 64GB    a quarter of an hour an order

Results are text files in benchmarks/generator/results, with a summary at the end. What is there already is not run
again, so a run that was broken off goes on where it stopped; delete a file to repeat it. Every stream starts at fixed
coordinates, which stand in the results, so a repetition gives the same numbers. What was found: docs/generator.md.

Needs dieharder (Debian: dieharder) and, for TestU01, a C compiler and the library (Debian: libtestu01-0-dev); for
PractRand a C compiler and its program RNG_test. A battery that is not installed is reported and left out.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import stream

HERE = Path(__file__).parent
RESULTS = HERE / "results"
BUILD = HERE / "build"

# The list of dieharder -a, with two differences. 14 (diehard_sums) is left out, since dieharder itself marks it "Do Not
# Use". Of 203 (rgb_lagged_sum) the lags 6 to 32 are left out: they would read 26 times as much as lags 0 to 5.
# All orders take a test in turn, the longest tests last.
DIEHARDER = [
    *(f"-d {test}" for test in (*range(14), 15, 16, 17, 100, 101, 102, 204, 205)),
    *("-d 206 -n 256", "-d 207 -n 32", "-d 208 -n 0", "-d 209 -n 12"),
    *(f"-d 202 -n {n}" for n in range(2, 6)),
    *(f"-d 203 -n {n}" for n in range(6)),
    *(f"-d 201 -n {n}" for n in range(2, 6)),
    *(f"-d 200 -n {n}" for n in range(1, 13)),
]
SLOWEST = "-d 17"  # half of the time of all, so it comes after the list
FIELDS = ("test_name", "ntuple", "tsamples", "psamples", "pvalues", "assessment")
SEEDS_APART = 256  # test number i of the list starts at seed 256 * i, call 0: no two of an order read the same words
RECHECK_FIRST_SEED = 1_000_000  # a test with a WEAK or FAILED line is repeated from here, on more samples
RECHECK_SAMPLES = 5

TESTU01 = ("smallcrush", "crush")
COMPARED_WORDS = 2**25 + 2**20  # of every order; where out, in or sample runs fastest, this is more than a whole call


def dieharder(order, number):
    """Test `number` of the list, and again on other words if a line is not PASSED."""
    path, options = RESULTS / f"dieharder-{order}.txt", DIEHARDER[number]
    if not path.exists():
        version = subprocess.run(["dieharder", "-l"], stdout=subprocess.PIPE, text=True).stdout
        version = re.search(r"dieharder version [\d.]+", version).group()
        append(path, f"# {version}, order {order}\n# command | words | CPU seconds\n# {'|'.join(FIELDS)}\n")
    block = dieharder_block(path, order, SEEDS_APART * number, options)
    if "WEAK" in block or "FAILED" in block:
        samples = RECHECK_SAMPLES * int(block.splitlines()[1].split("|")[3])
        dieharder_block(path, order, RECHECK_FIRST_SEED + SEEDS_APART * number, f"{options} -p {samples}")


def dieharder_block(path, order, first_seed, options):
    """The block of one test in the results: its command, how much it read and its lines."""
    head = f"stream.py --order {order} --first-seed {first_seed} | dieharder -g 200 {options} |"
    done = re.search(re.escape(head) + r".*\n(.+\n)*", path.read_text())
    if done:
        return done.group()
    command = ["dieharder", "-g", "200", *options.split(), *(word for field in FIELDS for word in ("-D", field))]
    before = sum(os.times()[:4])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        count = stream.write(process.stdin.fileno(), stream.chunks(order, first_seed))
        lines = process.stdout.read()
    if process.returncode or "|" not in lines:
        raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}\n{lines}")
    lines = "".join("".join(line.split()) + "\n" for line in lines.splitlines())
    block = f"{head} {count / 1e6:.0f}e6 words | {sum(os.times()[:4]) - before:.0f} s\n{lines}"
    append(path, "\n" + block)
    return block


def testu01(battery, order):
    paths = {bits: RESULTS / f"{battery}-{order}-{bits}.txt" for bits in ("forward", "reversed")}
    paths = {bits: path for bits, path in paths.items() if not path.exists()}
    libraries = ["-ltestu01", "-ltestu01probdist", "-ltestu01mylib", "-lm"]
    program = compiled("testu01.c", "-I/usr/include/testu01", *libraries) if paths else None
    if program is None:
        return
    check_copy([program, "words", order, "forward"], order)
    for bits, path in paths.items():
        command = [program, battery, order, bits]
        print(f"{path.name}: started", flush=True)
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        append(path, f"# testu01 {' '.join(command[1:])}\n{output.strip()}\n")


def practrand(order, size):
    path = RESULTS / f"practrand-{order}.txt"
    if path.exists():
        return
    battery = shutil.which("RNG_test")
    program = compiled("words.c") if battery else None
    if program is None:
        print("left out: PractRand's RNG_test is not installed", file=sys.stderr)
        return
    check_copy([program, order], order)
    print(f"{path.name}: started", flush=True)
    with subprocess.Popen([program, order], stdout=subprocess.PIPE) as source:
        command = [battery, "stdin32", "-tlmax", size]
        output = subprocess.run(command, stdin=source.stdout, stdout=subprocess.PIPE, text=True, check=True).stdout
        source.kill()
    append(path, f"# words {order} | RNG_test {' '.join(command[1:])}\n{output.strip()}\n")


def compiled(name, *arguments):
    """The program of a C file beside this one, or None if it cannot be built here."""
    source, program = HERE / name, BUILD / name.removesuffix(".c")
    newest = max(path.stat().st_mtime for path in (source, HERE / "words.h"))
    if program.exists() and program.stat().st_mtime > newest:
        return program
    BUILD.mkdir(exist_ok=True)
    compiler = shutil.which("cc")
    if compiler is None or subprocess.run([compiler, "-O3", source, "-o", program, *arguments]).returncode:
        print(f"left out: {name} cannot be built here, see its head", file=sys.stderr)
        return None
    return program


def check_copy(command, order, words=COMPARED_WORDS):
    """Stop unless the C copy gives the words of the library."""
    with subprocess.Popen([*command, "0", str(words)], stdout=subprocess.PIPE) as process:
        left = words
        for chunk in stream.chunks(order):
            expected = chunk.reshape(-1)[:left].tobytes()
            if process.stdout.read(len(expected)) != expected:
                process.kill()
                raise SystemExit(f"words.h does not give the words of the library, order {order}")
            left -= len(expected) // 4
            if left == 0:
                return


def summary():
    """A line for every file of results."""
    for path in sorted(RESULTS.glob("*.txt")):
        text = path.read_text()
        if path.name.startswith("practrand"):
            print(f"{path.stem}: {text.count('no anomalies')} lengths without anomalies, FAIL {text.count('FAIL')}")
            continue
        if not path.name.startswith("dieharder"):
            statistics = re.search(r"Number of statistics: +(\d+)", text).group(1)
            verdict = "all passed" if "All tests were passed" in text else "see the file"
            print(f"{path.stem}: {statistics} statistics, {verdict}")
            continue
        blocks = re.findall(r"--first-seed (\d+) .*\| (\d+)e6 words \| (\d+) s\n((?:.+\n)+)", text)
        for what, repeated in (("first runs", False), ("repetitions of tests with a line not PASSED", True)):
            some = [block for block in blocks if (int(block[0]) >= RECHECK_FIRST_SEED) == repeated]
            words, seconds = (sum(int(block[i]) for block in some) for i in (1, 2))
            lines = " ".join(block[3] for block in some)
            counts = ", ".join(f"{lines.count(verdict)} {verdict}" for verdict in ("PASSED", "WEAK", "FAILED"))
            print(
                f"{path.stem}: {what}: {len(some)} tests, {words / 1e3:.1f}e9 words, {seconds / 60:.0f} min, {counts}"
            )


def append(path, text):
    with path.open("a") as file:
        file.write(text)
    print(f"{path.name}: {text}", end="", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--battery", choices=("dieharder", *TESTU01, "practrand"), nargs="+", default=("dieharder", "smallcrush")
    )
    parser.add_argument("--order", choices=stream.ORDERS, nargs="+", default=stream.ORDERS)
    parser.add_argument("--size", default="16GB", help="what PractRand reads of each order, default 16GB")
    args = parser.parse_args()
    os.environ.setdefault("KERAS_BACKEND", "numpy")
    RESULTS.mkdir(exist_ok=True)
    try:
        if "dieharder" in args.battery and shutil.which("dieharder") is None:
            print("left out: dieharder is not installed", file=sys.stderr)
        elif "dieharder" in args.battery:
            for number in sorted(range(len(DIEHARDER)), key=lambda number: DIEHARDER[number] == SLOWEST):
                for order in args.order:
                    dieharder(order, number)
        for battery in TESTU01:
            for order in args.order if battery in args.battery else ():
                testu01(battery, order)
        for order in args.order if "practrand" in args.battery else ():
            practrand(order, args.size)
    except KeyboardInterrupt:
        print("\nbroken off: the same command goes on from here", file=sys.stderr)
        return 130
    summary()


if __name__ == "__main__":
    sys.exit(main())
