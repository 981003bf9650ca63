"""Builds prompts of the kinds that benchmarks ask from installed packages, without a data set.

They come from reasoning-gym generators and from the documentation and sources of installed *third-party* packages. The
standard library, ``pydoc_data`` and low reasoning-gym seeds are reserved for the offline suites, so that no training
row is ever evaluated.
"""

from __future__ import annotations

import ast
import random
import sysconfig
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hambench.methods.hamburger.data.windows import documented_nodes

SOURCE_PACKAGES = (
    "numpy", "scipy.stats", "scipy.signal", "scipy.optimize", "pandas.core", "click", "jinja2", "matplotlib",
    "networkx", "sympy.ntheory", "sympy.functions", "rich", "sqlalchemy", "yaml", "packaging",
)  # fmt: skip
"""Packages whose docstrings and sources become prompts; those not installed are skipped."""

PUZZLES = (
    "gsm_symbolic", "chain_sum", "basic_arithmetic", "leg_counting", "calendar_arithmetic", "time_intervals",
    "letter_counting", "number_sequence", "products", "gcd", "lcm", "simple_equations", "word_sorting",
    "number_sorting", "syllogism", "family_relationships", "spell_backward", "fraction_simplification",
    "bitwise_arithmetic", "count_primes", "sentence_reordering", "aiw", "coin_flip", "decimal_arithmetic",
)  # fmt: skip
"""reasoning-gym generators whose questions become prompts."""

SEED_OFFSET = 10_000_000
"""Added to every reasoning-gym seed, so that seeds differ from those of the offline suites."""

_TOPICS = (
    "a lighthouse", "photosynthesis", "the history of bread", "learning to swim", "a lost dog", "remote work",
    "the water cycle", "chess openings", "a visit to the dentist", "urban gardens", "why leaves change colour",
    "saving money", "the moon", "a train journey", "public libraries", "a birthday surprise", "renewable energy",
    "keeping bees", "the first day at school", "recycling", "how bridges stay up", "healthy breakfasts",
    "a storm at sea", "time management", "volcanoes", "a mysterious letter", "city traffic", "music practice",
    "the immune system", "hiking safely", "an old clock", "electric cars", "dinosaurs", "making friends",
    "the printing press", "sleep", "coral reefs", "a robot that paints", "coffee", "the Silk Road",
)  # fmt: skip
_FORMS = (
    "Write a short story about {}.", "Explain {} to a ten-year-old.", "Give five tips about {}.",
    "Write a poem of four lines about {}.", "List three facts about {}.", "Write an email to a friend about {}.",
    "What are the advantages and disadvantages of {}?", "Write a dialogue between two people about {}.",
    "Summarise what is known about {} in two sentences.", "Write a news headline and a paragraph about {}.",
)  # fmt: skip
_CONSTRAINTS = (
    "", "", " Use no more than 60 words.", " Do not use any commas.", " Answer in all lowercase letters.",
    " Use bullet points.", " Finish with a question.", " Put the title in double angular brackets.",
    " Include the word 'window' twice.", " Answer in three paragraphs separated by ***.",
)  # fmt: skip


class Prompt(NamedTuple):
    """One prompt: its text, its kind, and whether to apply the chat template."""

    text: str
    kind: str
    chat: bool


def build_prompts(count: int, *, seed: int = 0) -> list[Prompt]:
    """Builds ``count`` prompts of all kinds in equal shares, shuffled; equal seeds give equal prompts."""
    rng = random.Random(seed)
    documented = _documented(rng)
    puzzle = _puzzle_maker()
    makers: dict[str, Callable[[random.Random], Prompt | None]] = {
        "puzzle": lambda rng: puzzle(rng, None),
        "reasoned": lambda rng: _reasoned(rng, puzzle),
        "sum": lambda rng: _reasoned(rng, puzzle, "chain_sum"),
        "writing": _writing,
    }
    if documented:
        for maker in (
            _explain,
            _complete_code,
            _finish_function,
            _summarise,
            _find,
            _numbered,
            _classify,
            _question,
        ):
            makers[maker.__name__.strip("_")] = _over(documented, maker)
    kinds = list(makers.values())
    prompts: dict[str, Prompt] = {}
    for attempt in range(50 * count):
        prompt = kinds[attempt % len(kinds)](rng)
        if prompt is not None:
            prompts.setdefault(prompt.text, prompt)
        if len(prompts) == count:
            break
    shuffled = list(prompts.values())
    rng.shuffle(shuffled)
    return shuffled


def _puzzle_maker() -> Callable[[random.Random, str | None], Prompt | None]:
    import reasoning_gym

    loaded: dict[str, Any] = {}

    def make(rng: random.Random, wanted: str | None) -> Prompt | None:
        name = wanted or rng.choice(PUZZLES)
        seed = SEED_OFFSET + rng.randrange(1000)
        key = f"{name}-{seed % 7}"
        if key not in loaded:
            loaded[key] = reasoning_gym.create_dataset(name, size=200, seed=seed)
        question = loaded[key][rng.randrange(200)]["question"]
        return Prompt(question, "puzzle", chat=True) if len(question) < 1500 else None

    return make


def _reasoned(
    rng: random.Random,
    puzzle: Callable[[random.Random, str | None], Prompt | None],
    name: str = "gsm_symbolic",
) -> Prompt | None:
    puzzle_prompt = puzzle(rng, name)
    if puzzle_prompt is None:
        return None
    text = puzzle_prompt.text.partition(" Give the result as")[0]
    if name == "chain_sum":
        text = f"What is {text.rpartition(':')[2].strip(' =')}?"
    ask = rng.choice(
        (
            f"Given the following problem, reason and give a final answer to the problem.\nProblem: {text}\nYour "
            'response should end with "The final answer is [answer]" where [answer] is the response to the problem.',
            f"Question: {text}\nStep-by-Step Answer:",
            f"{text} Think step by step.",
        )
    )
    return Prompt(ask, "reasoned", chat=rng.random() < 0.8)


def _writing(rng: random.Random) -> Prompt:
    text = rng.choice(_FORMS).format(rng.choice(_TOPICS)) + rng.choice(_CONSTRAINTS)
    return Prompt(text, "writing", chat=True)


class _Documented(NamedTuple):
    name: str
    doc: str
    source: str


def _documented(rng: random.Random, *, num_files: int = 400) -> list[_Documented]:
    """Returns functions and classes with long docstrings, from a sample of files; imports nothing."""
    files = [path for package in SOURCE_PACKAGES for path in _files_of(package)]
    by_docstring: dict[str, _Documented] = {}
    for path in rng.sample(files, min(num_files, len(files))):
        source = path.read_text(encoding="utf-8", errors="ignore")
        lines = source.splitlines()
        for node, doc in documented_nodes(source):
            if isinstance(node, ast.Module) or len(doc) < 120:
                continue
            text = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno])) + "\n"
            by_docstring.setdefault(doc, _Documented(node.name, doc, text))
    things = list(by_docstring.values())
    rng.shuffle(things)
    return things


def _files_of(package: str) -> list[Path]:
    folder = Path(sysconfig.get_path("purelib"), *package.split("."))
    hidden = {"tests", "test", "conftest.py", "setup.py"}
    return [path for path in sorted(folder.rglob("*.py")) if not hidden & set(path.parts)]


def _over(
    documented: list[_Documented], make: Callable[[random.Random, list[_Documented]], Prompt | None]
) -> Callable[[random.Random], Prompt | None]:
    return lambda rng: make(rng, documented)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit].rsplit("\n", 1)[0]


def _explain(rng: random.Random, documented: list[_Documented]) -> Prompt:
    one = rng.choice(documented)
    ask = rng.choice(("Explain what this code does.", "What does this function return?", "Review this code."))
    return Prompt(f"{ask}\n\n```python\n{_cut(one.source, 1200)}\n```", "explain", chat=True)


def _complete_code(rng: random.Random, documented: list[_Documented]) -> Prompt | None:
    lines = rng.choice(documented).source.splitlines()
    if len(lines) < 14:
        return None
    end = rng.randrange(10, min(len(lines), 90))
    code = "\n".join(lines[max(0, end - 60) : end]) + "\n"
    if rng.random() < 0.5:
        return Prompt(
            f"Please complete the code given below. \n{code}Next line of code:\n", "complete", chat=False
        )
    return Prompt(code, "complete", chat=False)


def _finish_function(rng: random.Random, documented: list[_Documented]) -> Prompt | None:
    one = rng.choice(documented)
    head, quote, rest = one.source.partition('"""')
    if not quote or "def " not in head or len(head) > 500:
        return None
    stub = f'{head}"""{_cut(rest.partition(chr(34) * 3)[0], 500)}\n    """\n'
    form = rng.randrange(3)
    if form == 0:
        return Prompt(stub, "function", chat=False)
    if form == 1:
        ask = "Write a solution to the following problem and make sure that it passes the tests:"
        return Prompt(f"{ask}\n```python\n{stub}\n```", "function", chat=True)
    return Prompt(f"Complete the following Python function.\n\n```python\n{stub}```", "function", chat=True)


def _summarise(rng: random.Random, documented: list[_Documented]) -> Prompt:
    docs = "\n\n".join(_cut(one.doc, 1200) for one in rng.sample(documented, rng.choice((1, 1, 2, 3))))
    ask = "You are given a text. Write a one-page summary of it."
    if rng.random() < 0.5:
        ask = "Summarise the following documentation in one sentence."
    return Prompt(f"{ask}\n\nText:\n{docs}\n\nNow, write the summary.\n\nSummary:", "summarise", chat=True)


def _find(rng: random.Random, documented: list[_Documented]) -> Prompt:
    chosen = rng.sample(documented, rng.choice((3, 4, 6)))
    passages = "\n\n".join(f"Passage {i + 1}:\n{_cut(one.doc, 500)}" for i, one in enumerate(chosen))
    wanted = rng.choice(chosen)
    if rng.random() < 0.4:
        ask = f"Which passage does this sentence summarise? {wanted.doc.splitlines()[0]}\n\nThe answer is: "
        return Prompt(f"{passages}\n\n{ask}", "find", chat=True)
    ask = f"Answer the question based on the given passages.\n\n{passages}\n\nQuestion: What is `{wanted.name}` for?"
    return Prompt(f"{ask}\nAnswer:", "find", chat=True)


def _numbered(rng: random.Random, documented: list[_Documented]) -> Prompt:
    chosen = [" ".join(_cut(one.doc, 350).split()) for one in rng.sample(documented, rng.choice((2, 3, 4)))]
    wanted = rng.randrange(len(chosen))
    paragraphs = "\n\n".join(f"Paragraph {i}: {text}" for i, text in enumerate(chosen, 1))
    sentence = chosen[wanted].split(". ")[0]
    return Prompt(
        f"Here are some numbered paragraphs.\n\n{paragraphs}\n\nThe sentence is: {sentence}\n\nWhich paragraph is "
        'it from? Answer like "Paragraph 1" or "Paragraph 2".\n\nThe answer is: ',
        "numbered",
        chat=True,
    )


def _classify(rng: random.Random, documented: list[_Documented]) -> Prompt:
    shots = rng.sample(documented, 5)
    lines = [f"Text: {_cut(one.doc, 160).splitlines()[0]}\nName: {one.name}" for one in shots[:-1]]
    return Prompt(
        "\n\n".join([*lines, f"Text: {shots[-1].doc.splitlines()[0]}\nName:"]), "classify", chat=False
    )


def _question(rng: random.Random, documented: list[_Documented]) -> Prompt:
    one = rng.choice(documented)
    ask = rng.choice(
        (
            "Which arguments does it take?",
            "Give an example of its use.",
            "When would somebody need it?",
            "What is returned?",
            "Write three questions about it with their answers.",
            "List its main points.",
        )
    )
    text = f"Read the text and answer.\n\n`{one.name}`: {_cut(one.doc, 1500)}\n\nQuestion: {ask}\nAnswer:"
    return Prompt(text, "question", chat=True)
