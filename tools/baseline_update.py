#!/usr/bin/env python3
"""One GRPO update in arca and in PyTorch, side by side, on this CPU or GPU.

    python tools/baseline_update.py --shape 5m                      here, on the CPU
    python tools/baseline_update.py --shape 1.7b --device cuda --micro 4

The batch is the same for all in shapes, lengths and seeds of the lengths:
--prompts prompts of --prompt tokens with --group completions of --new tokens
(--ragged: of 8 to --new). Peers, each in a process of its own that stays
loaded, take turns with `arca bench update`:

    eager    transformers + peft, the policy-gradient loss written by hand
    compile  the same through torch.compile
    trl      TRL's GRPOTrainer on the ready batch: its loss, its optimizer step

They pad and repeat prompts as TRL does. --micro is how many of their sequences
go through at once (all, unless given: a vocabulary's logits in f32 are large);
arca cuts batches itself (train.tokens_per_batch). Rules, virtual environment
and report are those of tools/compare_cpu.py. The table goes to standard output
and to benches/results/update-<device>-<date>.md.
"""

import argparse
import datetime
import sys
from pathlib import Path

import compare_cpu

SHAPES = ("5m", "100m", "0.6b", "1.7b", "4b")
PEERS = {
    "eager": ("peft eager", "update", {}),
    "compile": ("peft compiled", "update", {"compile": True}),
    "trl": ("TRL", "trl_update", {}),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="5m")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("f32", "bf16"), help="default: f32 on a CPU, else bf16")
    parser.add_argument("--prompts", type=int, help="default: 8 on a CPU, else 16")
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompt", type=int, help="default: 64 on a CPU, else 256")
    parser.add_argument("--new", type=int, help="default: 64 on a CPU, else 512")
    parser.add_argument("--ragged", action="store_true")
    parser.add_argument("--r", type=int, default=16, help="rank of the adapter")
    parser.add_argument("--micro", type=int, help="the peers' sequences at once")
    parser.add_argument("--checkpointing", action="store_true", help="TRL's gradient checkpointing")
    parser.add_argument("--peers", default="eager,compile,trl", help="which, with commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--retries", type=int, default=3, help="of a round, for want of cores")
    parser.add_argument("--arca", type=Path, help="a binary [default: cargo build --release]")
    parser.add_argument("--venv", type=Path, default=compare_cpu.TOOLS / ".venv")
    parser.add_argument("--models", type=Path, help="where to keep the random checkpoints")
    parser.add_argument("--wrap", default="", help="command in front of measured processes")
    parser.add_argument("--out", type=Path, default=compare_cpu.ROOT / "benches" / "results")
    args = parser.parse_args()
    unknown = set(args.peers.split(",")) - set(PEERS)
    if unknown:
        parser.error(f"--peers: {', '.join(sorted(unknown))}: known are {', '.join(PEERS)}")
    setup = compare_cpu.Setup(args)
    rows = compare_cpu.measure(setup, workload(args))
    title = f"Update of {args.shape} on {args.device}"
    text = compare_cpu.report(setup, rows, title, "baseline_update.py")
    shares = sorted(rows[0]["share_of_roof"])
    text += f"\narca's share of the measured product rate: {100 * shares[len(shares) // 2]:.1f} % in the median\n"
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"update-{args.device}-{datetime.date.today()}.md"
    path.write_text(text)
    print(f"written to {path}", file=sys.stderr)


def workload(args):
    gpu = args.device == "cuda"
    dtype = args.dtype or ("bf16" if gpu else "f32")
    if gpu and dtype == "f32":
        sys.exit("arca computes in bf16 on a GPU: --dtype bf16")
    prompts = args.prompts or (16 if gpu else 8)
    prompt = args.prompt or (256 if gpu else 64)
    new = args.new or (512 if gpu else 64)
    ours = ["update", "--prompts", prompts, "--group-size", args.group, "--prompt-length", prompt]
    ours += ["--new-tokens", new, "--lora-r", args.r] + ["--ragged"] * args.ragged
    # The peers take arca's lengths: see compare_cpu.measure.
    job = {"prompt": prompt, "group": args.group, "lengths": None, "r": args.r, "micro": args.micro}
    job |= {"device": args.device, "checkpointing": args.checkpointing}
    lengths = f"8..{new}" if args.ragged else str(new)
    return {
        "name": f"update {args.shape} {dtype}",
        "what": f"{prompts} prompts of {prompt} x {args.group} completions of {lengths} tokens, LoRA r {args.r}; "
        f"peers pad and repeat prompts, {args.micro or 'all'} sequences at once; tokens count a prompt once",
        "shape": args.shape, "dtype": dtype, "device": args.device, "repeats": 1,
        # On a GPU the host may idle.
        "batched": not gpu,
        "arca": [str(word) for word in ours],
        "peers": [(name, kind, {**job, **more}) for name, kind, more in map(PEERS.get, args.peers.split(","))],
    }


if __name__ == "__main__":
    main()
