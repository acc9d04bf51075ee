"""lm-evaluation-harness (EleutherAI): our models as one of its model classes, and its tasks from local folders.

Needs the extra `eval`. Imported only when used. Nothing here touches the network, but `datasets`, which reads a task's
local files, first asks the Hub about them unless the process was started with HF_HUB_OFFLINE=1.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lm.errors import LmError, UsageError
from lm.evaluate.score import Scorer
from lm.evaluate.tasks import Encoder

try:
    from jinja2 import TemplateError
    from lm_eval import simple_evaluate
    from lm_eval.api.model import TemplateLM
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from yaml import YAMLError
except ImportError as error:
    raise UsageError(f"--include-path needs lm-evaluation-harness ({error}): pip install -e '.[eval]'.") from error

_GENERATE = 16  # prompts continued at a time
_MAX_GEN_TOKENS = 256  # where a task does not say
_BOOTSTRAP = 1000  # resamples for the standard errors of what is no mean; the harness's default takes minutes


class Harness(TemplateLM):
    """A model for `lm_eval.simple_evaluate(model=…)`.

    Args:
      scorer: gives log-likelihoods; its `max_length` is the model's here.
      generate: `generate(prompts, max_new_tokens=…, temperature=…, top_k=…, top_p=…)` yields each row's new ids, a few
        at a time (`lm.infer.Generator.stream`); temperature 0 is greedy.
      params: the model's parameters, for the scorer.
      tokenizer: a `lm.tokenizer.Tokenizer`.
      add_bos: put the end-of-text token before each context; else it stands for an empty one only.
    """

    def __init__(
        self,
        scorer: Scorer,
        generate: Callable[..., Iterator[list[list[int]]]],
        params: Any,
        tokenizer,
        *,
        add_bos: bool = False,
    ):
        super().__init__()
        self._scorer, self._stream, self._params = scorer, generate, params
        self._tokenizer = tokenizer
        self._encode = Encoder(tokenizer, add_bos=add_bos)
        self._add_bos = add_bos

    @property
    def eot_token_id(self) -> int:
        """The id of `<|endoftext|>`."""
        return self._tokenizer.eot_id

    @property
    def max_length(self) -> int:
        """Tokens that the model takes."""
        return self._scorer.max_length

    @property
    def tokenizer_name(self) -> str:
        """What the harness names its cache by."""
        return self._tokenizer.sha256

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        """Return the ids of a text; special tokens are never parsed out of it."""
        bos = [self.eot_token_id] if self._add_bos and add_special_tokens is not False else []
        return [*bos, *self._tokenizer.encode(string).tolist()]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        return self._encode(context, continuation)  # remembers contexts, which a question's choices share

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **_) -> list[tuple[float, bool]]:
        from tqdm import tqdm

        out: list[tuple[float, bool] | None] = [None] * len(requests)
        pairs = [(context, continuation) for _, context, continuation in requests]
        with tqdm(total=len(requests), desc="log-likelihoods", disable=disable_tqdm) as bar:
            for batch in self._scorer.stream(self._params, pairs):
                for number, score in batch:
                    out[number] = tuple(score)
                    if requests[number][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[number][0], tuple(score))
                bar.update(len(batch))
        return out

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Return each text's log-likelihood in nats: windows of `max_length` that do not overlap, the first after eot."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            (text,) = request.args
            for window in get_rolling_token_windows(
                token_list=self._tokenizer.encode(text).tolist(),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, (loglikelihood, _) in zip(
            owners, self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm), strict=True
        ):
            totals[number] += loglikelihood
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Return each prompt's continuation up to the first of its stop strings, which is left out."""
        from tqdm import tqdm

        out: list[str | None] = [None] * len(requests)
        # Prompts of about one length together, the longest first.
        prompts = [self.tok_encode(request.args[0]) or [self.eot_token_id] for request in requests]
        groups: dict[str, list[int]] = {}
        for number in sorted(range(len(requests)), key=lambda number: -len(prompts[number])):
            groups.setdefault(repr(requests[number].args[1]), []).append(number)
        with tqdm(total=len(requests), desc="continuations", disable=disable_tqdm) as bar:
            for numbers in groups.values():
                options = dict(requests[numbers[0]].args[1])
                for first in range(0, len(numbers), _GENERATE):
                    own = numbers[first : first + _GENERATE]
                    for number, text in zip(own, self._generate([prompts[n] for n in own], options), strict=True):
                        out[number] = text
                        self.cache_hook.add_partial("generate_until", requests[number].args, text)
                    bar.update(len(own))
        return out

    def _generate(self, prompts: list[list[int]], options: dict[str, Any]) -> list[str]:
        until = options.get("until") or []
        until = [until] if isinstance(until, str) else list(until)
        new_tokens = int(options.get("max_gen_toks", options.get("max_new_tokens", _MAX_GEN_TOKENS)))
        room = self.max_length - new_tokens
        if room < 1:
            raise UsageError(
                f"a task asks for {new_tokens} new tokens (max_gen_toks), and the model takes {self.max_length} in all."
            )
        # As many rows and tokens each time, so that one program serves all.
        rows = [prompt[-room:] for prompt in prompts] + [[self.eot_token_id]] * (_GENERATE - len(prompts))
        ids: list[list[int]] = [[] for _ in prompts]
        texts = [""] * len(prompts)
        for chunk in self._stream(rows, max_new_tokens=new_tokens, **_sampling(options)):
            for row, new in enumerate(chunk[: len(prompts)]):
                ids[row] += new
            texts = [self._tokenizer.decode(own) for own in ids]
            if all(any(stop in text for stop in until if stop) for text in texts):
                break
        return [_cut(text, until) for text in texts]


def _sampling(options: dict[str, Any]) -> dict[str, float]:
    """Return the harness's generation options by our names: greedy unless a task samples."""
    temperature = float(options.get("temperature") or 0.0)
    if options.get("do_sample") and not temperature:
        temperature = 1.0
    if options.get("do_sample") is False:
        temperature = 0.0
    top_k, top_p = int(options.get("top_k") or 0), float(options.get("top_p") or 1.0)
    return {"temperature": temperature, "top_k": top_k, "top_p": top_p}


def _cut(text: str, until: Sequence[str]) -> str:
    """Return the text before the first stop string."""
    for stop in until:
        if stop:
            text = text.split(stop)[0]
    return text


def run_harness(
    model: Harness,
    names: Sequence[str],
    include_path: str,
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Return the harness's own results of its tasks.

    Args:
      model: ours.
      names: of tasks, groups or tags in `include_path`.
      include_path: a folder of task YAML files; the harness's own, which download, are not looked at.
      num_fewshot: None: as the tasks say.
      limit: items of each task; None: all.

    Raises:
      UsageError: no such task.
      LmError: a task cannot be loaded.
    """
    try:
        manager = TaskManager(include_path=include_path, include_defaults=False)
        if unknown := [name for name in names if name not in manager.all_tasks]:
            known = ", ".join(manager.all_tasks) or "none"
            raise UsageError(f'no task "{unknown[0]}" in "{include_path}"; tasks there: {known}.')
        results = simple_evaluate(
            model=model,
            tasks=list(names),
            task_manager=manager,
            num_fewshot=num_fewshot,
            limit=limit,
            log_samples=False,
            bootstrap_iters=_BOOTSTRAP,
        )
    except (OSError, ValueError, KeyError, TemplateError, YAMLError) as error:
        raise LmError(f"lm-evaluation-harness: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
    return {name: value for name, value in results.items() if name != "samples"}
