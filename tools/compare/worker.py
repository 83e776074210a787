"""One peer of tools/compare_cpu.py and tools/baseline_update.py: loads once, then does one run per line of
standard input and answers each with a JSON line (seconds, processor seconds,
peak memory). Usage: worker.py KIND JSON-ARGUMENTS
"""

import json
import os
import random
import sys
import time

import torch

torch.set_num_threads(2)
torch.set_num_interop_threads(1)


def peak_bytes():
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    with open("/proc/self/status") as f:
        for line in f:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024


class Lines:
    """Timed runs, asked for and answered in lines."""

    def __init__(self):
        # What libraries print must not come between the answers.
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.say({"ready": True})

    def say(self, value):
        self.out.write(json.dumps(value) + "\n")
        self.out.flush()

    def wait(self):
        if not sys.stdin.readline():
            os._exit(0)
        self.synchronize()
        self.start, self.cpu = time.perf_counter(), time.process_time()

    def synchronize(self):
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()

    def done(self):
        self.synchronize()
        seconds = time.perf_counter() - self.start
        cpu = time.process_time() - self.cpu
        self.say({"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak_bytes()})

    def serve(self, run):
        while True:
            self.wait()
            run()
            self.done()


def load(args):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(args["model"], dtype=getattr(torch, args["dtype"]))
    return model.to(args.get("device", "cpu"))


def lora(r):
    from peft import LoraConfig

    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return LoraConfig(r=r, lora_alpha=2 * r, target_modules=modules, task_type="CAUSAL_LM")


def models(args):
    """Checkpoints of random weights from a config.json."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    with open(args["config"]) as f:
        values = json.load(f)
    for key in ("architectures", "torch_dtype", "model_type"):
        values.pop(key, None)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Qwen3Config(**values), dtype=torch.float32)
    model.to(getattr(torch, args["dtype"])).save_pretrained(args["out"])


def generate(args):
    """Sampling in batches. With `lengths`: sequences of these lengths, each
    batch to its longest, as generate goes on until the last one has ended."""
    model = load(args).eval()
    # Lengths are to be what was asked for.
    model.generation_config.eos_token_id = None
    batch, prompt = args["batch"], args["prompt"]
    ids = torch.randint(model.config.vocab_size, (batch, prompt))
    lengths = args.get("lengths") or [args["new"]] * batch
    batches = [lengths[i : i + batch] for i in range(0, len(lengths), batch)]

    @torch.no_grad()
    def run(batches=batches):
        for wanted in batches:
            out = model.generate(
                ids[: len(wanted)],
                attention_mask=torch.ones_like(ids[: len(wanted)]),
                max_new_tokens=max(wanted),
                do_sample=True,
                top_k=0,
                pad_token_id=0,
            )
            assert out.shape == (len(wanted), prompt + max(wanted))

    run(batches[:1])
    Lines().serve(run)


def batch(args, vocab):
    """Random ids of an update. With `lengths`: a GRPO batch as TRL pads it, so
    many completions (`group`) to a prompt; else dense sequences. Returns ids,
    attention mask, the mask of what is scored, and how many last positions
    that is."""
    if args.get("lengths"):
        lengths = torch.tensor(args["lengths"])
        longest, prompt, group = int(lengths.max()), args["prompt"], args.get("group", 8)
        prompts = torch.randint(vocab, (len(lengths) // group, prompt)).repeat_interleave(group, 0)
        completions = torch.randint(vocab, (len(lengths), longest))
        mask = (torch.arange(longest) < lengths[:, None]).long()
        ids = torch.cat([prompts, completions], 1)
        attention = torch.cat([torch.ones_like(prompts), mask], 1)
        keep = longest
    else:
        ids = torch.randint(vocab, (args["batch"], args["tokens"]))
        attention, mask = torch.ones_like(ids), torch.ones_like(ids)[:, 1:]
        keep = args["tokens"] - 1
    device = args.get("device", "cpu")
    return ids.to(device), attention.to(device), mask.to(device), keep


def update(args):
    """Forward, backward and AdamW on a batch; `micro` sequences at a time, if
    given, and with `compile` through torch.compile."""
    from peft import get_peft_model

    model = get_peft_model(load(args), lora(args.get("r", 16))).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    ids, attention, mask, keep = batch(args, model.config.vocab_size)
    targets = ids[:, -keep:]
    advantages = torch.randn(len(ids), 1, device=ids.device)
    forward = torch.compile(model) if args.get("compile") else model
    parts = torch.arange(len(ids), device=ids.device).split(args.get("micro") or len(ids))

    def run():
        for part in parts:
            logits = forward(
                ids[part], attention_mask=attention[part], logits_to_keep=keep + 1
            ).logits[:, :-1]
            logits = logits.float()
            chosen = logits.gather(-1, targets[part][..., None]).squeeze(-1)
            logprobs = chosen - logits.logsumexp(-1)
            loss = -(logprobs * advantages[part] * mask[part]).sum() / mask.sum()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    run()
    Lines().serve(run)


def trl_update(args):
    """The update phase of TRL's GRPOTrainer (its loss, its optimizer step) on a
    batch that is there already: nothing is sampled."""
    from trl import GRPOTrainer

    model = load(args)
    ids, attention, mask, keep = batch(args, model.config.vocab_size)
    micro = args.get("micro") or len(ids)
    whole = {
        "prompt_ids": ids[:, :-keep],
        "prompt_mask": attention[:, :-keep],
        "completion_ids": ids[:, -keep:],
        "completion_mask": mask,
        "advantages": torch.randn(len(ids), device=ids.device),
    }
    parts = [
        {**{k: v[i : i + micro] for k, v in whole.items()}, "num_items_in_batch": mask.sum()}
        for i in range(0, len(ids), micro)
    ]

    class Given(GRPOTrainer):
        calls = 0

        def _prepare_inputs(self, _):
            self.calls += 1
            return parts[(self.calls - 1) % len(parts)]

    grpo(
        args,
        model,
        trainer=Given,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=len(parts),
        num_generations=args.get("group", 8),
        max_completion_length=keep,
    )


def step(args):
    """Whole steps of TRL's GRPOTrainer; one per line."""
    from trl import GRPOTrainer

    grpo(
        args,
        load(args),
        trainer=GRPOTrainer,
        per_device_train_batch_size=args["prompts"] * args["group"],
        gradient_accumulation_steps=1,
        num_generations=args["group"],
        max_completion_length=args["new"],
    )


def grpo(args, model, trainer, **sizes):
    """Serves the steps of a GRPOTrainer, the first of which warms up."""
    import tempfile

    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig

    vocab = model.config.vocab_size
    words = Tokenizer(WordLevel({f"t{i}": i for i in range(vocab)}, unk_token="t2"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="t0", eos_token="t1", unk_token="t2"
    )
    chance = random.Random(0)
    sequences = sizes["per_device_train_batch_size"] * sizes["gradient_accumulation_steps"]
    prompts = [
        " ".join(f"t{chance.randrange(3, vocab)}" for _ in range(args["prompt"]))
        for _ in range(sequences // sizes["num_generations"])
    ]

    def reward(completion_ids, **_):
        return [sum(i % 2 == 0 for i in ids) / max(len(ids), 1) for ids in completion_ids]

    lines = []

    class Gate(TrainerCallback):
        def on_step_begin(self, *_, **__):
            if not lines:
                lines.append(None)  # the first step warms up, unasked
            elif lines[0] is None:
                lines[0] = Lines()
            if lines[0]:
                lines[0].wait()

        def on_step_end(self, *_, **__):
            if lines[0]:
                lines[0].done()

    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=10_000,
        learning_rate=1e-5,
        beta=0.0,
        use_cpu=args.get("device", "cpu") == "cpu",
        bf16=args["dtype"] == "bfloat16",
        gradient_checkpointing=args.get("checkpointing", False),
        logging_steps=10_000,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **sizes,
    )
    trainer(
        model=model,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        peft_config=lora(args.get("r", 16)),
        callbacks=[Gate()],
    ).train()


if __name__ == "__main__":
    globals()[sys.argv[1]](json.loads(sys.argv[2]))
