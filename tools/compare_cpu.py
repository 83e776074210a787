#!/usr/bin/env python3
"""arca against TRL, transformers, peft and candle on this CPU, side by side.

    python tools/compare_cpu.py [--rounds 5] [--only step,rollout,decode,update]

Two threads each. Every round runs arca and then each peer once, so that what
else the machine does falls on all alike; a row is the median over rounds. A
peer's batched run counts only if the process really got both cores (user and
system time at least 1.8 times the wall time); else the round is run again, at
most --retries times, and the row is marked if that did not help. All workloads
are of random tokens and random weights at the shapes in tools/compare.

What it needs it installs itself: a virtual environment with the packages of
tools/compare/requirements.txt in --venv, the candle program with cargo, and
arca with `cargo build --release`. On a busy machine, --wrap gives measured
processes a way in front of others ("chrt -r 1").

The table goes to standard output and to benches/results/cpu-<date>.md.
"""

import argparse
import datetime
import functools
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "tools" / "compare"
THREADS = {"RAYON_NUM_THREADS": "2", "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
BUILD = ["cargo", "build", "--release", "--message-format=json"]
TORCH = {"f32": "float32", "bf16": "bfloat16"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--retries", type=int, default=3, help="of a round, for want of cores")
    parser.add_argument("--only", default="", help="names of rows, or beginnings of them")
    parser.add_argument("--dtypes", default="f32", help="f32, bf16, or both")
    parser.add_argument("--venv", type=Path, default=TOOLS / ".venv")
    parser.add_argument("--models", type=Path, help="where to keep the random checkpoints")
    parser.add_argument("--wrap", default="", help="command in front of measured processes")
    parser.add_argument("--out", type=Path, default=ROOT / "benches" / "results")
    args = parser.parse_args()
    setup = Setup(args)
    rows = []
    for workload in workloads(args.dtypes.split(",")):
        wanted = args.only.split(",")
        if any(workload["name"].startswith(w) for w in wanted):
            rows += measure(setup, workload)
    text = report(setup, rows)
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"cpu-{datetime.date.today()}.md"
    path.write_text(text)
    print(f"written to {path}", file=sys.stderr)


def workloads(dtypes):
    """Every workload with arca's command and its peers."""
    for dtype in dtypes:
        yield {
            "name": f"step 5m {dtype}",
            "what": "whole GRPO step, 8 prompts x 8 completions x 64 tokens, prompts of 64, LoRA r 16",
            "shape": "5m", "dtype": dtype, "batched": True, "repeats": 1,
            "arca": ["step"],
            "peers": [("TRL", "step", {"prompt": 64, "prompts": 8, "group": 8, "new": 64})],
        }
        for shape in ("5m", "100m"):
            yield {
                "name": f"rollout {shape} {dtype}",
                "what": "16 sequences, prompt 32, 64 new tokens",
                "shape": shape, "dtype": dtype, "batched": True, "repeats": 3 if shape == "5m" else 1,
                "arca": ["decode", "--batch", "16"],
                "peers": [("HF generate", "generate", {"batch": 16, "prompt": 32, "new": 64})],
            }
        for shape in ("5m", "100m"):
            yield {
                "name": f"rollout-grpo {shape} {dtype}",
                "what": "8 prompts of 64 x 8 completions of log-normal lengths up to 256, LoRA r 16; transformers "
                "(without LoRA) in batches of 16 to the longest of each, tokens up to each length counted",
                "shape": shape, "dtype": dtype, "batched": True, "repeats": 3 if shape == "5m" else 1,
                "arca": ["rollout"],
                "peers": [("HF generate", "generate", {"batch": 16, "prompt": 64, "lengths": None})],
            }
        for shape in ("5m", "100m"):
            peers = [("transformers", "generate", {"batch": 1, "prompt": 32, "new": 64})]
            if dtype == "f32":
                peers.append(("candle", "candle", {"prompt": 32, "new": 64}))
            yield {
                "name": f"decode {shape} {dtype}",
                "what": "one sequence, prompt 32, 64 new tokens",
                "shape": shape, "dtype": dtype, "batched": False, "repeats": 5 if shape == "5m" else 1,
                "arca": ["decode"],
                "peers": peers,
            }
        for shape, batch in (("5m", 16), ("100m", 4)):
            yield {
                "name": f"update {shape} {dtype}",
                "what": f"forward, backward, AdamW; LoRA r 16, {batch} sequences of 128 tokens",
                "shape": shape, "dtype": dtype, "batched": True, "repeats": 1,
                "arca": ["update", "--batch", str(batch)],
                "peers": [("peft", "update", {"batch": batch, "tokens": 128})],
            }
        yield {
            "name": f"update-grpo 5m {dtype}",
            "what": "the same on 8 prompts of 64 x 8 completions of 8..64 tokens; peft pads and repeats prompts",
            "shape": "5m", "dtype": dtype, "batched": True, "repeats": 1,
            "arca": ["update", "--ragged"],
            "peers": [("peft", "update", {"prompt": 64, "lengths": None})],
        }


class Setup:
    """Programs and checkpoints."""

    def __init__(self, args):
        self.args = args
        self.wrap = shlex.split(args.wrap)
        self.env = {**os.environ, **THREADS}
        self.python = args.venv / "bin" / "python"
        if not self.python.exists():
            venv.create(args.venv, with_pip=True)
            pip = [self.python, "-m", "pip", "install", "-q", "-r", TOOLS / "requirements.txt"]
            subprocess.run(pip, check=True)
        # Copied, so that a later build does not change what is measured.
        self.folder = Path(tempfile.mkdtemp())
        given = getattr(args, "arca", None)
        self.arca = shutil.copy(given or binary(BUILD, ROOT, "arca"), self.folder)
        dirty = " (with changes)" if command("git", "status", "--porcelain", "-uno") else ""
        self.commit = command("git", "rev-parse", "--short", "HEAD") + dirty
        self.models = args.models or self.folder

    @functools.cached_property
    def candle(self):
        return binary(BUILD, TOOLS / "candle", "candle-decode")

    def model(self, shape, dtype):
        path = self.models / f"{shape}-{dtype}"
        if not (path / "model.safetensors").exists():
            job = {"config": str(TOOLS / f"{shape}.json"), "dtype": TORCH[dtype], "out": str(path)}
            command = [self.python, TOOLS / "worker.py", "models", json.dumps(job)]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        return str(path)


def binary(build, folder, name):
    """Build, and ask cargo where the program lies."""
    run = subprocess.run(build, cwd=folder, check=True, capture_output=True, text=True)
    for line in run.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == name:
            return message["executable"]
    sys.exit(f"cargo built no {name} in {folder}")


class Peer:
    """A peer's process, kept loaded from round to round."""

    def __init__(self, setup, kind, job):
        if kind == "candle":
            command = [setup.candle, job["model"], str(job["prompt"]), str(job["new"])]
        else:
            command = [str(setup.python), str(TOOLS / "worker.py"), kind, json.dumps(job)]
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            setup.wrap + command, env=setup.env, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self.errors,
        )
        if kind == "candle":
            self.run()  # warms up
        elif not self.read().get("ready"):
            sys.exit(f"{kind} did not start")

    def read(self):
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        self.errors.seek(0)
        sys.exit("a peer ended:\n" + self.errors.read()[-2000:])

    def run(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.read()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def run_arca(setup, workload, model):
    command = setup.wrap + [setup.arca, "bench", *workload["arca"], "--model", model, "--json"]
    command += ["--repeats", str(workload["repeats"]), "--device", workload.get("device", "cpu")]
    command += ["--set", f"model.compute_dtype={workload['dtype']}"]
    run = subprocess.run(command, env=setup.env, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"{' '.join(command)}\n{run.stderr}")
    return json.loads(run.stdout.splitlines()[-1])


def measure(setup, workload):
    """Alternate arca and the peers; one row per peer."""
    model = setup.model(workload["shape"], workload["dtype"])
    first = run_arca(setup, workload, model)
    peers = {}
    for name, kind, job in workload["peers"]:
        job = {**job, "model": model, "dtype": TORCH[workload["dtype"]]}
        if "lengths" in job:
            job["lengths"] = first["lengths"]
        peers[name] = Peer(setup, kind, job)
    ours, theirs = [], {name: [] for name in peers}
    for _ in range(setup.args.rounds):
        runs = {}
        for attempt in range(setup.args.retries + 1):
            mine = run_arca(setup, workload, model)
            runs = {name: peer.run() for name, peer in peers.items()}
            full = all(cores(r) is None or cores(r) >= 1.8 for r in runs.values())
            if full or not workload["batched"]:
                break
        ours.append(mine)
        for name, run in runs.items():
            theirs[name].append(run)
    for peer in peers.values():
        peer.close()
    rows = []
    for name, runs in theirs.items():
        rows.append(
            {
                **workload,
                "peer": name,
                "tokens": first["tokens"],
                "ours": median(ours, "seconds"),
                "theirs": median(runs, "seconds"),
                "our_cores": statistics.median(cores(r) or 0 for r in ours),
                "their_cores": statistics.median(cores(r) or 0 for r in runs),
                "short": sum(1 for r in runs if cores(r) and cores(r) < 1.8),
                "share_of_roof": [r["share_of_roof"] for r in ours if "share_of_roof" in r],
                "our_peak": max(r.get("device_peak_bytes") or r["peak_bytes"] for r in ours),
                "their_peak": max(r.get("peak_bytes") or 0 for r in runs),
            }
        )
        row = rows[-1]
        print(f"{row['name']}: arca {row['ours']:.3f} s, {name} {row['theirs']:.3f} s", file=sys.stderr)
    return rows


def command(*words):
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def cores(run):
    cpu = run.get("cpu_seconds")
    return None if cpu is None else cpu / run["seconds"]


def median(runs, key):
    return statistics.median(run[key] for run in runs)


def report(setup, rows, title="CPU comparison", program="compare_cpu.py"):
    processor = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.split(":")[1].strip()
    packages = (TOOLS / "requirements.txt").read_text().split()
    load = " ".join(f"{x:.1f}" for x in os.getloadavg())
    out = [
        f"# {title}, {datetime.date.today()}",
        "",
        f"- machine: {processor}, {os.cpu_count()} cores; load average at the end {load}",
        f"- arca: commit {setup.commit}, {command('rustc', '--version')}",
        f"- peers: {', '.join(packages)}" + (", candle 0.11.0" if any(r["peer"] == "candle" for r in rows) else ""),
        f"- command: `python tools/{program} {shlex.join(generic(sys.argv[1:]))}`",
        f"- medians of {setup.args.rounds} alternating rounds, 2 threads each",
        "",
        "| row | tokens/s arca | peer | tokens/s peer | arca is | cores arca / peer | peak MiB arca / peer |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        mark = f" ({r['short']} rounds short of cores)" if r["batched"] and r["short"] else ""
        peak = f"{r['our_peak'] / 2**20:.0f} / " + (f"{r['their_peak'] / 2**20:.0f}" if r["their_peak"] else "-")
        theirs = f"{r['their_cores']:.2f}" if r["their_cores"] else "-"
        out.append(
            f"| {r['name']} | {r['tokens'] / r['ours']:,.0f} | {r['peer']} | {r['tokens'] / r['theirs']:,.0f} "
            f"| {r['theirs'] / r['ours']:.2f}x | {r['our_cores']:.2f} / {theirs}{mark} | {peak} |"
        )
    out += ["", "What the rows are:", ""]
    for name, what in dict((r["name"], r["what"]) for r in rows).items():
        out.append(f"- {name}: {what}")
    return "\n".join(out) + "\n"


def generic(words):
    """Arguments without this machine's paths."""
    return [w for i, w in enumerate(words) if not (w in paths or (i and words[i - 1] in paths))]


paths = ("--venv", "--models", "--out", "--arca")

if __name__ == "__main__":
    main()
