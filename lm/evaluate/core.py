"""CORE, DCLM's mean of centred accuracies: 0 is guessing, 1 is always right (Li et al. 2024, arXiv:2406.11794).

The table is DCLM's own (github.com/mlfoundations/dclm, eval/eval_meta_data.csv: random baselines and shots; which tasks:
the paper's list of CORE). DCLM's evaluator picks the answer with the highest mean log-probability per
token, and reads an accuracy of greedy continuations where there are no answers to choose from.
"""

from collections.abc import Mapping

# Task -> (accuracy of guessing, worked examples in the prompt). HellaSwag is in it twice, with 0 examples and with 10.
CORE: Mapping[str, tuple[float, int]] = {
    "agi_eval_lsat_ar": (0.25, 3),
    "arc_challenge": (0.25, 10),
    "arc_easy": (0.25, 10),
    "bigbench_cs_algorithms": (0.0, 10),
    "bigbench_dyck_languages": (0.0, 10),
    "bigbench_language_identification": (0.25, 10),
    "bigbench_operators": (0.0, 10),
    "bigbench_qa_wikidata": (0.0, 10),
    "bigbench_repeat_copy_logic": (0.0, 10),
    "boolq": (0.62, 10),
    "commonsense_qa": (0.403, 10),
    "copa": (0.5, 0),
    "coqa": (0.0, 0),
    "hellaswag": (0.25, 10),
    "hellaswag_zeroshot": (0.25, 0),
    "jeopardy": (0.0, 10),
    "lambada_openai": (0.0, 0),
    "openbook_qa": (0.25, 0),
    "piqa": (0.5, 10),
    "squad": (0.0, 10),
    "winograd": (0.5, 0),
    "winogrande": (0.5, 0),
}


def centred(accuracy: float, baseline: float) -> float:
    """Return the accuracy on a scale from 0, guessing, to 1, always right."""
    return (accuracy - baseline) / (1 - baseline)


def core_score(centred_by_task: Mapping[str, float], shots: Mapping[str, int]) -> dict | None:
    """Return the mean over the tasks that are in CORE, and which; None if none is.

    Args:
      centred_by_task: task -> centred accuracy.
      shots: task -> worked examples it was asked with; with others than CORE's it does not count.
    """
    tasks = [name for name, (_, own) in CORE.items() if name in centred_by_task and shots[name] == own]
    if not tasks:
        return None
    return {"score": sum(centred_by_task[name] for name in tasks) / len(tasks), "tasks": tasks, "of": len(CORE)}
