#!/usr/bin/env python3
"""arca's answer checker against Math-Verify on labelled cases, side by side.

    python tools/compare_graders.py --cases cases.jsonl [--cases more.jsonl] [--sample 200]

A case is one JSON object a line: `gold`, `pred`, `equal` (the label), `kind`
("answer": pred is a bare answer; "response": a text that has it) and `group`.
Math-Verify gets golds and bare answers wrapped in $..$ (or in \\boxed{}, with
--wrap boxed) and responses as they are; its own timeouts hold (--limit), and
where they do not, its process is ended and the case counts as undecided, which
is "wrong" for both. arca is `arca grade -`, the release build, strict.

Math-Verify takes milliseconds a case: --sample N takes N cases of each group,
the same ones for both and for each run with the same --seed. Speed is that of
one core on the groups named by --speed, golds parsed each time as a reward
does; arca's cases are repeated --rounds times, for one round ends too early to
be timed, and its slowest verdict is over all rounds.

What it needs it installs itself: the packages of tools/compare/math-verify.txt
in a virtual environment that is thrown away (or kept in --venv), and arca with
`cargo build --release`. The table goes to standard output.
"""

import argparse
import datetime
import json
import os
import random
import re
import select
import shlex
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from compare_cpu import ROOT, TOOLS, binary, command

PACKAGES = TOOLS / "math-verify.txt"
RATES = re.compile(r"(\d+) answers per second and core; .* ([\d.]+) p50, ([\d.]+) p99, ([\d.]+) slowest")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", type=Path, action="append", required=True, help="repeatable")
    parser.add_argument("--sample", type=int, default=0, help="cases of each group; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--speed", default="model-outputs:response,self:answer", help="groups and kinds to time")
    parser.add_argument("--rounds", type=int, default=20, help="of the timed cases, arca only")
    parser.add_argument("--wrap", choices=("dollar", "boxed"), default="dollar")
    parser.add_argument("--limit", type=int, default=5, help="seconds of each call of Math-Verify, its default")
    parser.add_argument("--lenient", action="store_true", help="arca pays doubtful answers too")
    parser.add_argument("--arca", type=Path, help="a release build that is there already")
    parser.add_argument("--venv", type=Path, help="where to keep the virtual environment")
    args = parser.parse_args()
    cases = load(args)
    with tempfile.TemporaryDirectory() as folder:
        build = ["cargo", "build", "--release", "--message-format=json"]
        arca = args.arca or binary(build, ROOT, "arca")
        ours = run_arca(args, arca, cases)
        theirs = run_math_verify(args, args.venv or Path(folder) / "venv", cases)
        speeds = {
            name: speed(args, arca, cases, theirs, name) for name in args.speed.split(",") if name
        }
    print(report(args, cases, ours, theirs, speeds))


def load(args):
    """The labelled cases of all files, sampled by group, in the files' order."""
    groups = {}
    count = 0
    for path in args.cases:
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                sys.exit(f"{path}:{number} is no JSON: {error}")
            texts = [row.get(key) for key in ("gold", "pred")]
            if not all(isinstance(text, str) for text in texts) or not isinstance(row.get("equal"), bool):
                sys.exit(f"{path}:{number} lacks a text gold or pred, or a truth value equal")
            case = {
                "gold": row["gold"], "pred": row["pred"], "equal": row["equal"],
                "kind": row.get("kind") or "answer", "group": row.get("group") or "all", "order": count,
            }
            groups.setdefault(case["group"], []).append(case)
            count += 1
    if not count:
        sys.exit("the files hold no cases")
    chosen = []
    for name, rows in groups.items():
        if args.sample and args.sample < len(rows):
            rows = random.Random(f"{args.seed} {name}").sample(rows, args.sample)
        chosen += rows
    return sorted(chosen, key=lambda case: case["order"])


def grade(args, arca, cases):
    """Verdicts and the line of rates of `arca grade -`, on one thread."""
    text = "".join(json.dumps(case) + "\n" for case in cases)
    words = [arca, "grade", "-", *(["--lenient"] if args.lenient else [])]
    env = {**os.environ, "RAYON_NUM_THREADS": "1"}
    run = subprocess.run(words, input=text, env=env, capture_output=True, text=True, encoding="utf-8")
    if run.returncode:
        sys.exit(f"arca grade failed: {run.stderr}")
    return run.stdout.splitlines(), run.stderr.splitlines()[-1]


def run_arca(args, arca, cases):
    verdicts = [json.loads(line) for line in grade(args, arca, cases)[0]]
    return [(verdict["correct"], verdict.get("undecided", False)) for verdict in verdicts]


class MathVerify:
    """Its process, started anew where it hangs."""

    def __init__(self, args, python):
        self.command = [python, TOOLS / "math_verify_worker.py", args.wrap, str(args.limit)]
        # Two parses and one comparison, each with its own timeout; verify()
        # has one for every pair of candidates.
        self.patience = 10 * args.limit
        self.process = None

    def start(self):
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        if not json.loads(self.process.stdout.readline() or "{}").get("ready"):
            sys.exit("Math-Verify did not start")

    def grade(self, case):
        if self.process is None:
            self.start()
        job = {"gold": case["gold"], "pred": case["pred"], "response": case["kind"] == "response"}
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            ready = select.select([self.process.stdout], [], [], self.patience)[0]
            line = self.process.stdout.readline() if ready else ""
        except BrokenPipeError:
            line = ""
        if line:
            return json.loads(line)
        self.close()
        return {"correct": False, "timeout": True, "seconds": float(self.patience)}

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def run_math_verify(args, folder, cases):
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", PACKAGES], check=True)
    peer = MathVerify(args, python)
    results = []
    for number, case in enumerate(cases, 1):
        results.append(peer.grade(case))
        if number % 500 == 0:
            print(f"Math-Verify: {number} of {len(cases)} cases", file=sys.stderr)
    peer.close()
    return results


def speed(args, arca, cases, theirs, name):
    """Rates of both on the cases of one group and kind."""
    group, _, kind = name.partition(":")
    chosen = [
        i for i, case in enumerate(cases) if case["group"] == group and case["kind"] == (kind or case["kind"])
    ]
    if not chosen:
        return None
    rates = RATES.match(grade(args, arca, [cases[i] for i in chosen] * args.rounds)[1])
    if not rates:
        sys.exit("arca grade printed no rates")
    rate, *mine = (float(x) for x in rates.groups())
    seconds = sorted(theirs[i]["seconds"] for i in chosen)
    peer = [statistics.median(seconds), seconds[min(len(seconds) - 1, int(0.99 * len(seconds)))], seconds[-1]]
    return len(chosen), (rate, mine), (len(seconds) / sum(seconds), [1000 * s for s in peer])


def tally(cases, verdicts):
    """Accuracy in %, false positives, false negatives, undecided."""
    positive = sum(v and not case["equal"] for case, (v, _) in zip(cases, verdicts))
    negative = sum(case["equal"] and not v for case, (v, _) in zip(cases, verdicts))
    accuracy = 100 * (1 - (positive + negative) / len(cases))
    return f"{accuracy:.2f} | {positive} | {negative} | {sum(undecided for _, undecided in verdicts)}"


def report(args, cases, ours, theirs, speeds):
    theirs = [(result["correct"], result["timeout"]) for result in theirs]
    sample = f"at most {args.sample} cases of each group, seed {args.seed}" if args.sample else "all cases"
    dirty = " (with changes)" if command("git", "status", "--porcelain", "-uno") else ""
    load = " ".join(f"{x:.1f}" for x in os.getloadavg())
    arca = "a build given by --arca" if args.arca else f"commit {command('git', 'rev-parse', '--short', 'HEAD')}{dirty}"
    out = [
        f"# Graders, {datetime.date.today()}",
        "",
        f"- machine: {processor()}, {os.cpu_count()} cores, each grader on one; load average at the end {load}",
        f"- arca: {arca}, {'lenient' if args.lenient else 'strict'}",
        f"- peer: {', '.join(PACKAGES.read_text().split())}, answers wrapped: {args.wrap}, {args.limit} s a call",
        f"- cases: {', '.join(path.name for path in args.cases)}; {sample}",
        f"- command: `python tools/compare_graders.py {shlex.join(generic(sys.argv[1:]))}`",
        "",
        "Left arca, right Math-Verify (MV). A false positive pays a wrong answer; undecided counts as wrong.",
        "",
        "| group | rows | labelled equal | arca % | false pos. | false neg. | undecided "
        "| MV % | false pos. | false neg. | undecided |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    names = list(dict.fromkeys(case["group"] for case in cases))
    for name in [*names, None]:
        at = [i for i, case in enumerate(cases) if name in (None, case["group"])]
        rows = [cases[i] for i in at]
        equal = sum(case["equal"] for case in rows)
        mine, peer = (tally(rows, [verdicts[i] for i in at]) for verdicts in (ours, theirs))
        out.append(f"| {name or 'total'} | {len(rows)} | {equal} | {mine} | {peer} |")
    out += [
        "",
        "| speed | rows | arca answers/s and core | p50 ms | p99 ms | slowest ms "
        "| MV answers/s and core | p50 ms | p99 ms | slowest ms | arca is |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in speeds.items():
        if row is None:
            out.append(f"| {name} | 0 |" + " - |" * 9)
            continue
        count, (rate, mine), (their_rate, peer) = row
        mine = " | ".join(f"{ms:.4f}" for ms in mine)
        peer = " | ".join(f"{ms:.2f}" for ms in peer)
        out.append(
            f"| {name} | {count} | {rate:,.0f} | {mine} | {their_rate:,.0f} | {peer} | {rate / their_rate:,.0f}x |"
        )
    return "\n".join(out)


def generic(words):
    """Arguments without this machine's paths."""
    paths = ("--arca", "--venv")
    kept = [w for i, w in enumerate(words) if w.split("=")[0] not in paths and (i == 0 or words[i - 1] not in paths)]
    # Also of --cases=FILE, whose name would begin with the option.
    return [re.sub(r"^(--cases=)?.*/", r"\1", w) for w in kept]


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return "unknown processor"


if __name__ == "__main__":
    main()
