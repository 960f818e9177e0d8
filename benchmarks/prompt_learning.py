"""The cost of a training step through CLIP's text tower, next to a whole round of `gda`.

PromptFL (arXiv 2208.11625) and FedTPG (arXiv 2310.06123) train the text side: a step computes the
text vector of every class from 16 context vectors, forward and backward, through the text tower of
ViT-B/32. The weights are random, which does not affect the cost. As in the reference codes, every
prompt has the tower's full length of 77 tokens, and a batch has 32 pictures, whose features are
cached. FedTPG's generator of the context vectors is left out; it would add to the cost.

A round of gda is the sums over --pictures cached features and the solution for the head.

Each row is a process of its own. "s" is the shortest elapsed time of --repeat runs after a first
one, and "CPU s" is the least time of all threads, which other programs affect less. "MB" is the
process's peak resident memory, with its libraries and weights.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from fedclip_edge.learning import methods
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.method import LocalTask
from fedclip_edge.processes.blas import limit_blas_threads
from fedclip_edge.records import ClassTexts, Features, Plan

DIM, CONTEXT, BATCH = 512, 16, 32
TOWER = "ViT-B-32-quickgelu"


def drawn(classes: int, pictures: int) -> tuple[ClassTexts, Features]:
    """Class texts, and features around them with a norm of 10."""
    random = np.random.default_rng(0)
    units = random.normal(size=(classes, DIM))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    names = tuple(f"class {n}" for n in range(classes))
    labels = np.arange(pictures) % classes
    vectors = 10 * (units[labels] + 0.04 * random.normal(size=(pictures, DIM)))
    texts = ClassTexts(names, units.astype(np.float32), 100.0, "unknown")
    return texts, Features(vectors.astype(np.float32), labels, "e" * 64)


def gda_round(classes: int, pictures: int) -> Callable[[], object]:
    """A whole round of gda with one device."""
    texts, features = drawn(classes, pictures)
    empty = Features(features.vectors[:0], features.labels[:0], features.encoder_id)
    plan = Plan("gda", {"min_per_class": 1}, rounds=1)
    start = methods.initial(plan, texts, DIM)

    def work() -> object:
        total = ExactSum(plan)
        total.add(methods.fit(LocalTask(plan, start, features, empty, texts, 0)))
        return methods.combine(start, total, {})

    return work


def prompt_step(classes: int) -> Callable[[], object]:
    """A training step of the context vectors of PromptFL."""
    import torch

    from fedclip_edge.exporting.torchvision_ops import declare_missing

    declare_missing()
    import open_clip

    tower = open_clip.create_model(TOWER).eval()
    tower.visual = None
    for parameter in tower.parameters():
        parameter.requires_grad_(False)
    texts, features = drawn(classes, BATCH)
    # Words in place of the context vectors, then the name; the tower reads the end of each prompt.
    prompts = [" ".join(["x"] * CONTEXT) + f" {name}." for name in texts.names]
    tokens = open_clip.get_tokenizer(TOWER)(prompts)  # (C, 77)
    ends = tokens.argmax(dim=1)  # (C,)
    words = tower.token_embedding(tokens)  # (C, 77, D)
    context = torch.empty(CONTEXT, DIM).normal_(std=0.02).requires_grad_()
    pictures = torch.nn.functional.normalize(torch.from_numpy(features.vectors))  # (B, D)
    labels = torch.from_numpy(features.labels)

    def work() -> object:
        own = context.expand(classes, -1, -1)
        x = torch.cat([words[:, :1], own, words[:, 1 + CONTEXT :]], dim=1)  # (C, 77, D)
        x = tower.transformer(x + tower.positional_embedding, attn_mask=tower.attn_mask)
        read = tower.ln_final(x)[torch.arange(classes), ends] @ tower.text_projection  # (C, D)
        logits = 100 * pictures @ torch.nn.functional.normalize(read).T  # (B, C)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return torch.autograd.grad(loss, context)

    return work


def measure(what: str, classes: int, threads: int, repeat: int, pictures: int) -> dict[str, float]:
    """Time one kind of work in this process, after a first run."""
    if what == "gda":
        work = gda_round(classes, pictures)
    else:
        import torch

        torch.set_num_threads(threads)
        work = prompt_step(classes)
    work()
    elapsed, used = [], []
    for _ in range(repeat):
        began, used_before = time.perf_counter(), time.process_time()
        work()
        elapsed.append(time.perf_counter() - began)
        used.append(time.process_time() - used_before)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"s": min(elapsed), "cpu_s": min(used), "peak_mb": peak}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, nargs="+", default=[7, 21, 100])
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--one", nargs=3, metavar=("WHAT", "CLASSES", "THREADS"), help=argparse.SUPPRESS
    )
    options = parser.parse_args(arguments)
    if options.one:
        what, classes, threads = options.one
        found = measure(what, int(classes), int(threads), options.repeat, options.pictures)
        print(json.dumps(found))
        return
    print(
        f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    print(f"{'classes':>7}  {'work':28} threads        s    CPU s       MB")
    rows = []
    for classes in options.classes:
        for what, threads in (("prompt", 1), ("prompt", 2), ("gda", 1)):
            command = [sys.executable, __file__, "--one", what, str(classes), str(threads)]
            command += ["--repeat", str(options.repeat), "--pictures", str(options.pictures)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            row = {"classes": classes, "work": what, "threads": threads}
            row |= json.loads(done.stdout.splitlines()[-1])
            rows.append(row)
            title = "one step through the tower" if what == "prompt" else "a whole round of gda"
            print(
                f"{classes:7}  {title:28} {threads:7} {row['s']:8.3f} {row['cpu_s']:8.3f} "
                f"{row['peak_mb']:8.0f}",
                flush=True,
            )
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    limit_blas_threads()
    main()
