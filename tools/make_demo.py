#!/usr/bin/env python3
"""Makes assets/demo: a tiny pretrained Qwen3-architecture model, its tokenizer, and problems in MATH format.

    python tools/make_demo.py            # everything, with the recipe below
    python tools/make_demo.py --tokens 300000 --out /tmp/demo   # a quick one, to try the formats

The base is meant to leave room for reinforcement learning. Its pretraining solutions come in three manners (worked steps
and a box, a box alone, steps without a box) and some of their results are wrong, a box alone most often, so a policy gains
by choosing the better manner and by sharpening what it half knows. The solutions of train.jsonl and eval.jsonl are right.

Deterministic on one machine for a given seed, thread count and package versions (tools/requirements.txt).
"""

import argparse
import json
import math
import random
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

PROMPT = "Problem: {problem}\nSolution:\n"
END = "<|endoftext|>"
SPECIAL = [END, "<|im_start|>", "<|im_end|>"]
VOCAB = 512
NEW_TOKENS = 40
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


@dataclass(frozen=True)
class Shape:
    """Every width is a multiple of 64."""

    hidden: int = 128
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    intermediate: int = 256
    vocab: int = VOCAB
    rope_theta: float = 10000.0
    eps: float = 1e-6


@dataclass(frozen=True)
class Recipe:
    seed: int = 1337
    threads: int = 1
    tokens: int = 1_600_000
    batch: int = 6  # rows
    row: int = 128  # tokens
    lr: float = 2e-3
    final_lr: float = 0.1  # share of lr that the cosine ends at
    warmup: int = 100
    facts: float = 0.6  # share of the lines that are bare arithmetic facts
    steps_and_box: float = 0.2  # of the problems; what the two shares leave is steps without a box
    box_only: float = 0.6
    prompt_weight: float = 0.1  # of a prompt's tokens in the loss; 1 for the rest
    steps_noise: float = 0.15  # share of the worked solutions whose last result is wrong
    box_noise: float = 0.7  # the same for a box alone: a guess
    train_problems: int = 1500
    eval_problems: int = 200
    eval_samples: int = 8


# --- problems ---------------------------------------------------------------------------------------------------------

HE = ["Tom", "Ben", "Sam", "Max", "Paul", "Omar", "Jack", "Liam", "Noah", "Hugo", "Ivan", "Karl", "Finn"]
SHE = ["Anna", "Mia", "Lena", "Eva", "Sara", "Nina", "Ruth", "Maya", "Lucy", "Zoe", "Olga", "Rosa", "Emma"]
THINGS = ["apples", "books", "coins", "cards", "pens", "shells", "stamps", "stones"]
THINGS += ["eggs", "balls", "cups", "plums", "marbles", "pencils", "oranges", "tickets"]
BAGS = ["bags", "boxes", "baskets", "jars", "crates", "drawers"]


@dataclass(frozen=True)
class Problem:
    text: str
    steps: tuple  # (expression, intermediate forms, result) per step
    unit: str  # what the answer counts, '' for bare arithmetic
    level: str
    subject: str

    @property
    def answer(self):
        return self.steps[-1][2]


def step_add(a, b):
    """17+25=37+5=42: the tens of the second operand first."""
    middle = [f"{a + b - b % 10}+{b % 10}"] if b >= 10 and b % 10 else []
    return (f"{a}+{b}", middle, a + b)


def step_sub(a, b):
    middle = [f"{a - (b - b % 10)}-{b % 10}"] if b >= 10 and b % 10 else []
    return (f"{a}-{b}", middle, a - b)


def step_mul(a, b):
    """13*7=70+21=91."""
    middle = [f"{(a - a % 10) * b}+{a % 10 * b}"] if a >= 10 and a % 10 else []
    return (f"{a}*{b}", middle, a * b)


def draw_sum(rng):
    return rng.randint(2, 40), rng.randint(2, 40)


def draw_difference(rng):
    a = rng.randint(4, 40)
    return a, rng.randint(2, a - 1)


def draw_product(rng):
    return rng.randint(2, 14), rng.randint(2, 6)


def bare(rng):
    ask = rng.choice(["What is {}?", "Compute {}.", "Find the value of {}."])
    kind = rng.choice("++--*pm")
    if kind == "+":
        a, b = draw_sum(rng)
        expression, steps = f"{a} + {b}", (step_add(a, b),)
        level = 1 if a % 10 + b % 10 < 10 else 2
    elif kind == "-":
        a, b = draw_difference(rng)
        expression, steps = f"{a} - {b}", (step_sub(a, b),)
        level = 1 if a % 10 >= b % 10 else 2
    elif kind == "*":
        a, b = draw_product(rng)
        expression, steps, level = f"{a} * {b}", (step_mul(a, b),), 2
    elif kind == "p":
        (a, b), c = draw_product(rng), rng.randint(2, 20)
        expression, steps, level = f"{a} * {b} + {c}", (step_mul(a, b), step_add(a * b, c)), 4
    else:
        a, b = draw_sum(rng)
        c = rng.randint(2, min(40, a + b - 1))
        expression, steps, level = f"{a} + {b} - {c}", (step_add(a, b), step_sub(a + b, c)), 3
    return Problem(ask.format(expression), steps, "", f"Level {level}", "Arithmetic")


def word(rng):
    name, thing, bag = rng.choice(HE + SHE), rng.choice(THINGS), rng.choice(BAGS)
    he = "He" if name in HE else "She"
    ask = f"How many {thing} does {name} have now?"
    kind = rng.choice("++--*pm")
    if kind == "+":
        a, b = draw_sum(rng)
        verb = rng.choice(["buys", "finds", "gets", "wins"])
        text, steps, level = f"{name} has {a} {thing}. {he} {verb} {b} more. {ask}", (step_add(a, b),), 2
    elif kind == "-":
        a, b = draw_difference(rng)
        verb = rng.choice(["loses", "sells", "gives away"])
        text, steps, level = f"{name} has {a} {thing}. {he} {verb} {b} of them. {ask}", (step_sub(a, b),), 2
    elif kind == "*":
        a, b = draw_product(rng)
        text = f"{name} has {b} {bag} with {a} {thing} each. How many {thing} does {name} have?"
        steps, level = (step_mul(a, b),), 3
    elif kind == "p":
        (a, b), c = draw_product(rng), rng.randint(2, 20)
        text = f"{name} has {b} {bag} with {a} {thing} each. {he} finds {c} more. {ask}"
        steps, level = (step_mul(a, b), step_add(a * b, c)), 5
    else:
        a, b = draw_sum(rng)
        c = rng.randint(2, min(40, a + b - 1))
        text = f"{name} has {a} {thing}. {he} buys {b} more and sells {c}. {ask}"
        steps, level = (step_add(a, b), step_sub(a + b, c)), 4
    return Problem(text, steps, thing, f"Level {level}", "Word Problems")


def draw_problem(rng):
    return bare(rng) if rng.random() < 0.5 else word(rng)


def draw_fact(rng):
    draw, step = rng.choice([(draw_sum, step_add), (draw_difference, step_sub), (draw_product, step_mul)])
    expression, _, result = step(*draw(rng))
    return f"{expression}={result}"


def slip(result, rng):
    """A wrong result of the kind that a careless pupil writes."""
    wrong = result + rng.choice([-10, -2, -1, 1, 2, 10])
    return wrong if wrong >= 0 else result + 1


def solution(problem, rng, manner="steps and box", noise=0.0):
    result = slip(problem.answer, rng) if rng.random() < noise else problem.answer
    if manner == "box":
        return f"The answer is \\boxed{{{result}}}."
    work = []
    for i, (expression, middle, value) in enumerate(problem.steps):
        value = result if i + 1 == len(problem.steps) else value
        work.append("=".join([expression, *middle, str(value)]))
    text = ". ".join(work) + (f" {problem.unit}." if problem.unit else ".")
    return text + (f" The answer is \\boxed{{{result}}}." if manner == "steps and box" else f" The answer is {result}.")


def draw_line(rng, recipe, held_out):
    """One pretraining document as (prompt, completion)."""
    if rng.random() < recipe.facts:
        return "", draw_fact(rng)
    problem = draw_problem(rng)
    while problem.text in held_out:
        problem = draw_problem(rng)
    u = rng.random()
    manner = "steps and box" if u < recipe.steps_and_box else "box" if u < recipe.steps_and_box + recipe.box_only else "steps"
    noise = recipe.box_noise if manner == "box" else recipe.steps_noise
    return PROMPT.format(problem=problem.text), solution(problem, rng, manner, noise)


def draw_distinct(rng, count, taken):
    problems = []
    while len(problems) < count:
        problem = draw_problem(rng)
        if problem.text not in taken:
            taken.add(problem.text)
            problems.append(problem)
    return problems


def write_problems(path, problems, rng):
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for p in problems:
            row = {"problem": p.text, "solution": solution(p, rng), "answer": str(p.answer), "level": p.level, "subject": p.subject}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


# --- tokenizer --------------------------------------------------------------------------------------------------------


def train_tokenizer(texts):
    """Byte-level BPE with Qwen's normaliser and split; the special tokens take the last ids, outside the BPE vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    byte_level = dict(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"), pre_tokenizers.ByteLevel(**byte_level)]
    )
    tokenizer.post_processor = processors.ByteLevel(**byte_level)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(SPECIAL), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    assert tokenizer.get_vocab_size() == VOCAB, tokenizer.get_vocab_size()
    return tokenizer


def write_tokenizer(tokenizer, out):
    raw = json.loads(tokenizer.to_str())
    # Keys that the trainer and the decoder's constructor do not set, as Qwen's file has them.
    raw["decoder"] |= {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    raw["model"] |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    (out / "tokenizer.json").write_text(json.dumps(raw, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    decoder = {
        str(tokenizer.token_to_id(t)): dict(content=t, lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)
        for t in SPECIAL
    }
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": SPECIAL[1:],
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "errors": "replace",
        "model_max_length": 256,
        "pad_token": END,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    write_json(out / "tokenizer_config.json", config)


# --- model: Qwen3 in plain torch, parameters under their Hugging Face names --------------------------------------------


def parameter_shapes(s):
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    shapes = {"model.embed_tokens.weight": (s.vocab, s.hidden)}
    for i in range(s.layers):
        p = f"model.layers.{i}."
        shapes |= {
            p + "input_layernorm.weight": (s.hidden,),
            p + "self_attn.q_proj.weight": (q, s.hidden),
            p + "self_attn.k_proj.weight": (kv, s.hidden),
            p + "self_attn.v_proj.weight": (kv, s.hidden),
            p + "self_attn.o_proj.weight": (s.hidden, q),
            p + "self_attn.q_norm.weight": (s.head_dim,),
            p + "self_attn.k_norm.weight": (s.head_dim,),
            p + "post_attention_layernorm.weight": (s.hidden,),
            p + "mlp.gate_proj.weight": (s.intermediate, s.hidden),
            p + "mlp.up_proj.weight": (s.intermediate, s.hidden),
            p + "mlp.down_proj.weight": (s.hidden, s.intermediate),
        }
    return shapes | {"model.norm.weight": (s.hidden,)}


def initial_weights(s):
    weights = {}
    for name, shape in parameter_shapes(s).items():
        if len(shape) == 1:
            weights[name] = torch.ones(shape)
        else:
            std = 0.02 if "embed" in name else shape[1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= math.sqrt(2 * s.layers)
            weights[name] = torch.randn(shape) * std
        weights[name].requires_grad_()
    return weights


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def forward(w, s, ids, mask=None, cache=None, linear=None):
    """ids [B, T] -> logits [B, T, vocab]. `cache` is a list of (k, v) per layer and grows; `linear(name, x)` may be replaced."""
    linear = linear or (lambda name, x: F.linear(x, w[name]))
    batch, length = ids.shape
    start = cache[0][0].shape[2] if cache else 0
    inverse = s.rope_theta ** (-torch.arange(0, s.head_dim, 2).float() / s.head_dim)
    angles = torch.arange(start, start + length).float()[:, None] * inverse
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    x = F.embedding(ids, w["model.embed_tokens.weight"])
    for i in range(s.layers):
        p = f"model.layers.{i}."
        h = F.rms_norm(x, (s.hidden,), w[p + "input_layernorm.weight"], s.eps)
        q = linear(p + "self_attn.q_proj.weight", h).view(batch, length, s.heads, s.head_dim)
        k = linear(p + "self_attn.k_proj.weight", h).view(batch, length, s.kv_heads, s.head_dim)
        v = linear(p + "self_attn.v_proj.weight", h).view(batch, length, s.kv_heads, s.head_dim).transpose(1, 2)
        q = F.rms_norm(q, (s.head_dim,), w[p + "self_attn.q_norm.weight"], s.eps).transpose(1, 2)
        k = F.rms_norm(k, (s.head_dim,), w[p + "self_attn.k_norm.weight"], s.eps).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            if start:
                k, v = torch.cat([cache[i][0], k], 2), torch.cat([cache[i][1], v], 2)
                cache[i] = (k, v)
            else:
                cache.append((k, v))
        groups = s.heads // s.kv_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and length > 1)
        x = x + linear(p + "self_attn.o_proj.weight", a.transpose(1, 2).reshape(batch, length, -1))
        h = F.rms_norm(x, (s.hidden,), w[p + "post_attention_layernorm.weight"], s.eps)
        h = F.silu(linear(p + "mlp.gate_proj.weight", h)) * linear(p + "mlp.up_proj.weight", h)
        x = x + linear(p + "mlp.down_proj.weight", h)
    x = F.rms_norm(x, (s.hidden,), w["model.norm.weight"], s.eps)
    return F.linear(x, w["model.embed_tokens.weight"])


def model_config(s, tokenizer):
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": tokenizer.token_to_id(END),
        "eos_token_id": tokenizer.token_to_id(END),
        "head_dim": s.head_dim,
        "hidden_act": "silu",
        "hidden_size": s.hidden,
        "initializer_range": 0.02,
        "intermediate_size": s.intermediate,
        "max_position_embeddings": 256,
        "max_window_layers": s.layers,
        "model_type": "qwen3",
        "num_attention_heads": s.heads,
        "num_hidden_layers": s.layers,
        "num_key_value_heads": s.kv_heads,
        "rms_norm_eps": s.eps,
        "rope_scaling": None,
        "rope_theta": s.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": s.vocab,
    }


# --- pretraining ------------------------------------------------------------------------------------------------------


class Packer:
    """Rows of whole documents, each ended by END. A document sees itself only, so rows need no common border."""

    def __init__(self, tokenizer, recipe, held_out):
        self.rng = random.Random(f"{recipe.seed} pretraining")
        self.tokenizer, self.recipe, self.held_out = tokenizer, recipe, held_out
        self.end = tokenizer.token_to_id(END)
        self.document = self.draw()

    def draw(self):
        prompt, completion = draw_line(self.rng, self.recipe, self.held_out)
        # Encoded apart, as prompt and completion are at rollout.
        prompt, completion = self.tokenizer.encode(prompt).ids, self.tokenizer.encode(completion).ids + [self.end]
        return prompt + completion, [self.recipe.prompt_weight] * len(prompt) + [1.0] * len(completion)

    def row(self):
        """ids, document numbers and loss weights; unused places at the end have number -1 and weight 0."""
        ids, numbers, weights, n = [], [], [], 0
        while len(ids) + len(self.document[0]) <= self.recipe.row + 1:
            ids += self.document[0]
            numbers += [n] * len(self.document[0])
            weights += self.document[1]
            self.document, n = self.draw(), n + 1
        pad = self.recipe.row + 1 - len(ids)
        return ids + [self.end] * pad, numbers + [-1] * pad, weights + [0.0] * pad

    def batch(self):
        rows = [self.row() for _ in range(self.recipe.batch)]
        ids, numbers, weights = (torch.tensor([r[i] for r in rows]) for i in range(3))
        inputs, seen = ids[:, :-1], numbers[:, :-1]
        weights = weights[:, 1:] * (numbers[:, 1:] == seen)
        mask = (seen[:, :, None] == seen[:, None, :]) & torch.ones(inputs.shape[1], inputs.shape[1]).tril().bool()
        return inputs, ids[:, 1:], weights, mask[:, None]


def learning_rate(recipe, step, steps):
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, steps - recipe.warmup)
    return recipe.lr * (recipe.final_lr + (1 - recipe.final_lr) * 0.5 * (1 + math.cos(math.pi * progress)))


def pretrain(weights, shape, recipe, packer, report):
    steps = recipe.tokens // (recipe.batch * recipe.row)
    matrices = [p for p in weights.values() if p.dim() == 2]
    vectors = [p for p in weights.values() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    curve, recent, began = [], [], time.time()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step, steps)
        inputs, targets, share, mask = packer.batch()
        logits = forward(weights, shape, inputs, mask)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        loss = (losses * share.flatten()).sum() / share.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
        recent.append(loss.item())
        if (step + 1) % max(1, steps // 20) == 0 or step + 1 == steps:
            curve.append((step + 1, sum(recent) / len(recent)))
            recent = []
            report(step + 1, steps, curve[-1][1], time.time() - began)
    return curve


# --- evaluation -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def generate(weights, shape, prompts, end, greedy, generator=None, linear=None):
    """Completions (lists of ids, END included) for lists of ids. Prompts of one length run together, so nothing is padded."""
    completions = [None] * len(prompts)
    for length in sorted({len(p) for p in prompts}):
        places = [i for i, p in enumerate(prompts) if len(p) == length]
        ids, cache, drawn = torch.tensor([prompts[i] for i in places]), [], []
        done = torch.zeros(len(places), dtype=torch.bool)
        for _ in range(NEW_TOKENS):
            logits = forward(weights, shape, ids, cache=cache, linear=linear)[:, -1]
            ids = logits.argmax(-1, keepdim=True) if greedy else torch.multinomial(logits.softmax(-1), 1, generator=generator)
            drawn.append(ids)
            done |= ids[:, 0] == end
            if done.all():
                break
        for place, row in zip(places, torch.cat(drawn, 1).tolist()):
            completions[place] = row[: row.index(end) + 1] if end in row else row
    return completions


def last_box(text):
    boxes = re.findall(r"\\boxed\{([^{}]*)\}", text)
    return boxes[-1] if boxes else None


def evaluate(weights, shape, tokenizer, problems, samples, seed, linear=None):
    end = tokenizer.token_to_id(END)
    prompts = [tokenizer.encode(PROMPT.format(problem=p.text)).ids for p in problems]

    def score(greedy, copies):
        generator = torch.Generator().manual_seed(seed)
        rows = generate(weights, shape, prompts * copies, end, greedy, generator, linear)
        boxes = [last_box(tokenizer.decode(r)) for r in rows]
        right = [b == str(p.answer) for b, p in zip(boxes, problems * copies)]
        boxed = sum(b is not None for b in boxes)
        return {
            "accuracy": sum(right) / len(rows),
            "box_rate": boxed / len(rows),
            "accuracy_given_box": sum(right) / max(1, boxed),
            "truncated_rate": sum(r[-1] != end for r in rows) / len(rows),
            "mean_tokens": sum(map(len, rows)) / len(rows),
        }

    return {"sampled": score(False, samples), "greedy": score(True, 1)}


def format_scores(scores):
    return "\n".join(
        f"{name:8} accuracy {s['accuracy']:6.1%}   box rate {s['box_rate']:6.1%}   accuracy given a box "
        f"{s['accuracy_given_box']:6.1%}   truncated {s['truncated_rate']:5.1%}   tokens {s['mean_tokens']:.1f}"
        for name, s in scores.items()
    )


# --- all of it --------------------------------------------------------------------------------------------------------


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "assets" / "demo")
    for name, default in asdict(Recipe()).items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(default), default=default)
    arguments = vars(parser.parse_args())
    return arguments.pop("out"), Recipe(**arguments)


def main():
    out, recipe = parse_arguments()
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(recipe.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(recipe.seed)
    shape = Shape()

    rng, taken = random.Random(f"{recipe.seed} problems"), set()
    held_out = draw_distinct(rng, recipe.eval_problems, taken)
    train = draw_distinct(rng, recipe.train_problems, taken)
    write_problems(out / "eval.jsonl", held_out, rng)
    write_problems(out / "train.jsonl", train, rng)

    held_out_texts = {p.text for p in held_out}
    rng = random.Random(f"{recipe.seed} tokenizer")
    tokenizer = train_tokenizer(["".join(draw_line(rng, recipe, held_out_texts)) for _ in range(20_000)])
    write_tokenizer(tokenizer, out)

    weights = initial_weights(shape)
    print(f"parameters {sum(w.numel() for w in weights.values()):,}", flush=True)

    def report(step, steps, loss, seconds):
        print(f"step {step:5}/{steps}   loss {loss:.4f}   {seconds:5.0f} s", flush=True)
        if step * 4 // steps > (step - steps // 20) * 4 // steps and step < steps:
            print(format_scores(evaluate(weights, shape, tokenizer, held_out, 1, recipe.seed)), flush=True)

    curve = pretrain(weights, shape, recipe, Packer(tokenizer, recipe, held_out_texts), report)

    f32 = evaluate(weights, shape, tokenizer, held_out, recipe.eval_samples, recipe.seed)
    rounded = {name: w.detach().to(torch.bfloat16) for name, w in weights.items()}
    scores = evaluate({n: w.float() for n, w in rounded.items()}, shape, tokenizer, held_out, recipe.eval_samples, recipe.seed)
    print("before rounding to bf16\n" + format_scores(f32) + "\nas saved (bf16 weights, f32 arithmetic)\n" + format_scores(scores))

    save_file(rounded, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    write_json(out / "config.json", model_config(shape, tokenizer))
    ends = [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id(END)]
    write_json(
        out / "generation_config.json",
        {"bos_token_id": ends[1], "do_sample": True, "eos_token_id": ends, "pad_token_id": ends[1], "temperature": 1.0},
    )
    write_json(out / "recipe.json", {"recipe": asdict(recipe), "loss": curve, "base": scores})


if __name__ == "__main__":
    main()
