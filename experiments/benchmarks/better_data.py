"""Is better data better? Four domains as they come against what the pipeline makes of them; the same model and tokens.

    LM_REAL_DATA=DIR python -m experiments.benchmarks.better_data --workdir runs/better_data

Before anything else one document in ten of each domain is set apart (of the books, a whole one). Both halves go through
`experiments/data/four_domains.py`; what it makes of the part set apart, without scores and without a choice by quality,
is the held-out text. The raw side is the other part as plain readers read it: wikitext with its redirects, whole books
with headers and hard line ends, C4's text and the HTML of a crawl, every file of the archives; duplicates and all.
Documents near to held-out text (half of the 5-grams of words in common, of the shorter one's if both are long) leave
both sides. One byte-pair encoding is trained on both sides together. Domains have a quarter of the tokens each, on both
sides, read as often as the budget takes; the budget is --steps steps of 1,024 tokens, the same on both sides. Three
seeds, each the same initialization on both sides.

Reports bits per byte of each domain's held-out text, windows of 256 tokens moved by 128: mean of the seeds, the
difference clean - raw and its paired 95 % interval (`lm.sweep.statistics`). What is done is not done again: the same
command continues. `--config.a.b=v` changes the model's config on both sides. Prints Markdown, then one JSON object.

Two CPU cores, 12 minutes beside other jobs: clean text of wiki -6.2 %, books -7.4 %, web -4.5 %, code -0.7 % (no
difference seen), mean -4.9 % (95 %: -0.122 to -0.093 bits per byte). The table is in `experiments/LOG.md`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable

from experiments.benchmarks.better_data_sides import DOMAINS, HeldOut, corpus_documents, raw_documents, set_apart

SIDES = ("raw", "clean")
CORPUS = "experiments/data/four_domains.py"
MODEL = {  # experiments/tiny.py with these: 2.9 M parameters
    "model.d_model": 128,
    "model.num_heads": 2,
    "data.source": "shards",
    "data.sequence_length": 256,
    "data.batch_size": 4,
    "log.sample_prompts": (),
}
_PLAIN = """
from lm.corpus.config import default, source

def get_config():
    config = default()
    for domain in {domains!r}:
        config.sources[domain] = source(
            reader="jsonl", paths=("{folder}/" + domain + ".jsonl",), clean="none", paragraphs=False
        )
    config.dedup.exact = config.dedup.near = config.dedup.paragraphs = False
    config.weighting, config.weights = "fixed", tuple((domain, 1.0) for domain in {domains!r})
    config.tokenizer, config.validation_fraction = {tokenizer!r}, 0.0
    return config
"""


def lm(*arguments: str, **environment: str) -> str:
    """Run a verb of `lm` and return its stdout; what it tells goes to stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "lm", *arguments], stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    if done.returncode:
        sys.exit(f"better_data: lm {' '.join(arguments)} ended with {done.returncode}; its error is above.")
    return done.stdout


def write_lines(path: str, texts: Iterable[str]) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)


def prepare(root: str, workdir: str, vocab_size: int, held_bytes: int) -> dict:
    """Make both sides' shards and the held-out text; return what they hold, by side and domain."""
    about_path = os.path.join(workdir, "about.json")
    if os.path.exists(about_path):
        with open(about_path) as file:
            return json.load(file)
    at = lambda *names: os.path.join(workdir, *names)  # noqa: E731
    for name in ("train", "held", "texts"):
        shutil.rmtree(at(name), ignore_errors=True)
    set_apart(root, at("train"), at("held"))
    unscored = ["--config.quality.good=()", "--config.quality.ordinary=()", "--config.sources.crawl.min_quality=None"]
    whole = ["--config.validation_fraction=0", "--config.weighting=proportional"]
    for name, more in (("train", []), ("held", [*unscored, "--config.tokenizer_vocab_size=1024"])):
        lm("data", "build", "--config", CORPUS, "--out", at(f"corpus-{name}"), *whole, *more, LM_REAL_DATA=at(name))

    held = corpus_documents(at("corpus-held"))
    near = HeldOut([text for domain in DOMAINS for text in held.get(domain, ())])
    cleaned = corpus_documents(at("corpus-train"))
    about: dict = {side: {} for side in (*SIDES, "held")}
    for domain in DOMAINS:
        for side, texts in (("raw", raw_documents(at("train"), domain)), ("clean", cleaned.get(domain, ()))):
            texts = [text for text in texts if text]
            kept = [text for text in texts if not near.is_near(text)]
            write_lines(at("texts", side, f"{domain}.jsonl"), kept)
            about[side][domain] = {**_size(kept), "near_held_out": len(texts) - len(kept)}
        text = "\n\n".join(held.get(domain, ()))
        text = text.encode()[:held_bytes].decode("utf-8", "ignore")
        with open(at("texts", f"{domain}.txt"), "w", encoding="utf-8") as file:
            file.write(text)
        about["held"][domain] = _size([text])

    tokenizer = at("texts", "tokenizer.tiktoken")
    if os.path.exists(tokenizer):
        os.remove(tokenizer)
    _train_tokenizer(
        [at("texts", side, f"{domain}.jsonl") for side in SIDES for domain in DOMAINS], vocab_size, tokenizer
    )
    for side in SIDES:
        with open(at("texts", f"{side}.py"), "w") as file:
            file.write(_PLAIN.format(domains=DOMAINS, folder=at("texts", side), tokenizer=tokenizer))
        shutil.rmtree(at(side), ignore_errors=True)
        lm("data", "build", "--config", at("texts", f"{side}.py"), "--out", at(side))
        with open(at(side, "card.json")) as file:
            sources = json.load(file)["sources"]
        for domain in DOMAINS:
            about[side][domain]["tokens"] = sources[domain]["stages"][-1]["tokens"]
    with open(about_path, "w") as file:
        json.dump(about, file)
    return about


def _size(texts: list[str]) -> dict[str, int]:
    return {"documents": len(texts), "bytes": sum(len(text.encode("utf-8", "replace")) for text in texts)}


def _train_tokenizer(paths: list[str], vocab_size: int, out: str) -> None:
    from lm.tokenizer import save, train_bpe

    def texts():
        for path in paths:
            with open(path, encoding="utf-8") as file:
                for line in file:
                    yield json.loads(line)["text"]

    save(train_bpe(texts(), vocab_size, "gpt4"), out)


def measure(workdir: str, seeds: int, steps: int, overrides: list[str]) -> dict[str, dict[str, dict[int, float]]]:
    """Train both sides with every seed; return bits per byte by domain, side and seed."""
    found: dict[str, dict[str, dict[int, float]]] = {d: {s: {} for s in SIDES} for d in (*DOMAINS, "mean")}
    files = {os.path.join(workdir, "texts", f"{domain}.txt"): domain for domain in DOMAINS}
    for seed in range(seeds):
        for side in SIDES[:: -1 if seed % 2 else 1]:
            run = os.path.join(workdir, "runs", f"{side}-{seed}")
            values = MODEL | {"data.path": os.path.join(workdir, side), "seed": seed, "optimizer.num_steps": steps}
            values["optimizer.warmup_steps"] = min(20, steps // 10)
            config = [f"--config.{name}={value}" for name, value in values.items()]
            lm("train", "--config", "experiments/tiny.py", "--workdir", run, *config, *overrides)
            windows = ["--stride", "128", "--batch-size", "16"]
            scored = json.loads(lm("eval", "--checkpoint", run, "--data", *files, "--by", "domain", *windows, "--json"))
            for path, figures in scored["by_domain"].items():
                found[files[path]][side][seed] = figures["bits_per_byte"]
            found["mean"][side][seed] = sum(found[domain][side][seed] for domain in DOMAINS) / len(DOMAINS)
    return found


def show(about: dict, found: dict[str, dict[str, dict[int, float]]]) -> None:
    from lm.sweep.statistics import judge

    print("| domain | raw: documents | MB | tokens | clean: documents | MB | tokens | held out, kB |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for domain in DOMAINS:
        raw, clean = about["raw"][domain], about["clean"][domain]
        cells = [f"{s['documents']:,} | {s['bytes'] / 1e6:.2f} | {s['tokens']:,}" for s in (raw, clean)]
        print(f"| {domain} | {' | '.join(cells)} | {about['held'][domain]['bytes'] / 1e3:.0f} |")
    print("\n| held-out text of | raw, bits/byte | clean | clean - raw | 95 % | |\n|---|---:|---:|---:|---|---|")
    for domain, values in found.items():
        difference = judge(values, "raw").of("clean")
        raw, clean = (sum(values[side].values()) / len(values[side]) for side in SIDES)
        print(
            f"| {domain} | {raw:.4f} | {clean:.4f} | {difference.mean:+.4f} ({difference.percent:+.1f} %) "
            f"| {difference.low:+.4f} to {difference.high:+.4f} | {difference.verdict or 'too few seeds'} |"
        )
    print(json.dumps({"about": about, "bits_per_byte": found}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("LM_REAL_DATA"), help="folder of real corpora")
    parser.add_argument("--workdir", required=True, help="for shards and runs; the same folder continues")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps of 1,024 tokens")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--held-bytes", type=int, default=100_000, help="held-out text that is scored, per domain")
    args, overrides = parser.parse_known_args()
    if args.data is None:
        parser.error("--data: name the folder of real corpora, or set $LM_REAL_DATA")
    workdir = os.path.abspath(args.workdir)
    os.makedirs(workdir, exist_ok=True)
    about = prepare(os.path.abspath(args.data), workdir, args.vocab_size, args.held_bytes)
    show(about, measure(workdir, args.seeds, args.steps, overrides))


if __name__ == "__main__":
    main()
