#!/usr/bin/env python3
"""Does PEFT compute with a saved adapter what arca computed?

    arca inspect --model MODEL --adapter ADAPTER --input ids.jsonl --json out.jsonl
    tools/peft_check.py MODEL ADAPTER out.jsonl [--temperature T] [--tolerance 1e-4]

Each line of out.jsonl has prompt_ids, completion_ids and logprobs (adapter
on), and may have reference_logprobs (adapter off), entropies, and logits
([position][vocabulary], raw, of every token). The model is loaded in float32
by transformers, the adapter by PEFT; the largest differences are printed.

Exit status: 0 all within tolerance; 1 a difference beyond it, the adapter off
makes no difference (PEFT loaded nothing), or a file tensor that is not in the
model as it stands. Needs torch, transformers, peft, safetensors.
"""

import argparse
import json
import sys
import warnings

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def compare_tensors(model, folder):
    """Every tensor of the file is in the model, every factor is from the file."""
    problems = []
    stored = load_file(f"{folder}/adapter_model.safetensors")
    held = {n.replace(".default.", "."): p.detach() for n, p in model.named_parameters() if ".lora_" in n}
    for name in sorted(stored.keys() | held.keys()):
        if name not in held:
            problems.append(f"{name} is in the file, but PEFT did not load it")
        elif name not in stored:
            problems.append(f"{name} is not in the file: PEFT's own initial values are used")
        elif not torch.equal(stored[name].float(), held[name].float()):
            problems.append(f"{name} differs from the file")
    return problems


@torch.no_grad()
def score(model, prompt, completion, temperature):
    """Log-probs and entropies of the completion, and all raw logits."""
    logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0].double()
    log = torch.log_softmax(logits[len(prompt) - 1 : -1] / temperature, dim=-1)
    chosen = log.gather(1, torch.tensor(completion)[:, None])[:, 0]
    return {"logprobs": chosen, "entropies": -(log.exp() * log).sum(-1), "logits": logits}


def main():
    p = argparse.ArgumentParser(description="Compare arca's numbers with transformers + PEFT.")
    p.add_argument("model")
    p.add_argument("adapter")
    p.add_argument("rows", help="JSONL as arca inspect --json writes it")
    p.add_argument("--temperature", type=float, default=1.0)
    p.add_argument("--tolerance", type=float, default=1e-4, help="largest difference allowed, in nats [1e-4]")
    a = p.parse_args()

    base = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base, a.adapter).eval()
    problems = [str(w.message).splitlines()[0] for w in caught if "adapter" in str(w.message)]
    problems += compare_tensors(model, a.adapter)

    largest, moved, rows, tokens = {}, 0.0, 0, 0
    with open(a.rows) as lines:
        for line in filter(str.strip, lines):
            row = json.loads(line)
            prompt, completion = row["prompt_ids"], row["completion_ids"]
            if not completion:
                continue
            on = score(model, prompt, completion, a.temperature)
            with model.disable_adapter():
                off = score(model, prompt, completion, a.temperature)
            moved = max(moved, float((on["logits"] - off["logits"]).abs().max()))
            pairs = [(k, on[k]) for k in ("logprobs", "entropies", "logits")]
            for key, expected in pairs + [("reference_logprobs", off["logprobs"])]:
                if not row.get(key):
                    continue
                got = torch.tensor(row[key], dtype=torch.float64)
                if got.shape != expected.shape:
                    problems.append(f"row {rows}: {key} has shape {list(got.shape)}, not {list(expected.shape)}")
                    continue
                worst = (got - expected).abs().max()
                # NaN must not pass for small.
                worst = float("inf") if worst.isnan() else float(worst)
                largest[key] = max(largest.get(key, 0.0), worst)
            if not row.get("logprobs"):
                problems.append(f"row {rows} has no logprobs")
            rows, tokens = rows + 1, tokens + len(completion)

    if rows == 0:
        problems.append(f"{a.rows} has no completion")
    for key, value in largest.items():
        print(f"{key:<20} largest difference {value:.3e}")
        if value > a.tolerance:
            problems.append(f"{key} differ by {value:.3e}, more than {a.tolerance:g}")
    print(f"{'adapter on - off':<20} largest difference {moved:.3e} (logits)")
    if rows and moved <= a.tolerance:
        problems.append("the adapter makes no difference: PEFT loaded nothing, or lora_B is zero")
    for problem in problems:
        print(f"FAILED: {problem}")
    print(f"{rows} completions, {tokens} tokens: {'FAILED' if problems else 'ok'}")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
