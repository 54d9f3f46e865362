"""Judges that tasks ask over the network while they are scored: which tasks have one, and whether it answered.

A task has a judge if its scoring functions reach a client of the network. Their code is read, not imported, and
followed through the functions, objects and methods that it mentions, into other files of lmms-eval.
"""

import ast
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.core.errors import UserError, one_line
from harness.core.files import BAD_JSON, digest, from_json
from harness.evaluation.datasets import NamedFunction, described

CLIENTS = {"openai", "anthropic", "httpx", "aiohttp", "litellm", "dashscope", "google"}  # packages
SENDERS = {"post", "request", "Session"}  # of the package `requests`, which tasks also download pictures with
JUDGE, JUDGE_KEYS = "lmms_eval.llm_judge", {"OPENAI_API_KEY", "AZURE_OPENAI_API_KEY"}  # lmms-eval's own client
KEY = re.compile(r"[A-Z0-9_]*(API_KEY|TOKEN)")
# Their code asks a judge only under an option that they do not set
ASK_NOBODY = {"mmbench_en_dev_static", "mmbench_cn_dev_static"}
HOPELESS = 3  # requests without an answer, before the first answer: a judge that is not there, or a key that is wrong
BUSY = "HTTP status 429"  # a judge that is there
REFUSALS = {f"HTTP status {code}" for code in (400, 413, 415, 422, 451)}  # of one request, which no repetition helps

Definition = tuple["_Module", ast.AST]


def check_key(task: str, file: Path) -> None:
    """Refuse a task whose judge has no key: most tasks would count its silence as a wrong answer."""
    keys = None if task in ASK_NOBODY else judge_keys(file)
    if keys and not any(map(os.environ.get, keys)):
        variant = f"; {task}_static needs none" if f"{task}_static" in ASK_NOBODY else ""
        raise UserError(f"task {task} asks a judge over the network: set {' or '.join(keys)}{variant}")


def judge_keys(file: Path) -> list[str] | None:
    """Return the environment variables of which a task's judge needs one, if any; None for a task without a judge."""
    reach = _Reach()
    for code, name in _scoring_functions(described(file)):
        reach.follow(_module(code), name)
    reach.finish()
    return sorted(reach.keys, key=lambda key: (key != "OPENAI_API_KEY", key)) if reach.sends else None


class JudgeSilenceError(BaseException):
    """Raised through a task's scoring code, which may catch every `Exception`, when its judge never answers."""


@contextmanager
def with_answers(task: str) -> Iterator[dict[int, str]]:
    """Watch the judge that a task asks in this block; yield which questions it has refused, and why.

    Tasks catch such failures and score on. UserError if a request is left without an answer for another reason, or if
    the judge has answered nothing. Only POST counts: with GET, tasks and models fetch pictures.
    """
    from unittest.mock import patch  # slow to import, like the three below: checks of a configuration do without

    import httpx
    import requests
    from lmms_eval import evaluator

    failures: dict[str, str] = {}  # digest of the request -> what came instead of an answer
    question_of: dict[str, int | None] = {}  # digest of the request -> the document that is scored
    question: int | None = None  # None while scores are added up
    bodies: dict[str, str] = {}  # digest of a failed request made then -> its text
    texts: dict[int, set[str]] = {}  # document -> what scoring has said of it in words
    refused: dict[int, str] = {}
    answered = False
    cause: BaseException | None = None

    def note(request: Any, failure: str | None) -> None:
        nonlocal answered
        if request.method != "POST":
            return
        body = request.body if isinstance(request, requests.PreparedRequest) else request.content
        body = body.decode("utf-8", "replace") if isinstance(body, bytes) else str(body)
        key = digest([str(request.url), body])
        if failure is None:
            answered = True
            failures.pop(key, None)  # a retry
            return
        failures[key], question_of[key] = failure, question
        if question is None:
            bodies[key] = body
        if not answered and sum(other != BUSY for other in failures.values()) >= HOPELESS:
            raise JudgeSilenceError

    @contextmanager
    def noted(request: Any) -> Iterator[Callable[[Any], None]]:
        """Note what comes of a request; the block passes on the response."""
        responses: list[Any] = []
        try:
            yield responses.append
        except Exception as error:  # of whatever kind, the task's code gets it
            note(request, f"{type(error).__name__}: {one_line(error)[:200]}")
            raise
        status = responses[0].status_code
        note(request, f"HTTP status {status}" if status >= 400 else None)

    def watched(send: Callable[..., Any]) -> Callable[..., Any]:
        def watched_send(client: Any, request: Any, **more: Any) -> Any:
            with noted(request) as receive:
                receive(response := send(client, request, **more))
            return response

        return watched_send

    def watched_async(send: Callable[..., Any]) -> Callable[..., Any]:
        async def watched_send(client: Any, request: Any, **more: Any) -> Any:
            with noted(request) as receive:
                receive(response := await send(client, request, **more))
            return response

        return watched_send

    score = evaluator._process_document_results

    def score_watched(item: tuple[int, Any, Any], **more: Any) -> Any:
        nonlocal question
        question = item[0]
        try:
            scored = score(item, **more)
            texts[question] = set(_texts(scored.metrics))
            return scored
        finally:
            question = None

    with (
        patch.object(evaluator, "_process_document_results", score_watched),
        patch.object(httpx.Client, "send", watched(httpx.Client.send)),
        patch.object(httpx.AsyncClient, "send", watched_async(httpx.AsyncClient.send)),
        patch.object(requests.Session, "send", watched(requests.Session.send)),
    ):
        try:
            yield refused
        except (Exception, JudgeSilenceError) as error:  # most likely about the answer that did not come
            if not failures:
                raise
            cause = error
    if answered and cause is None:
        for key, failure in list(failures.items()):
            doc_id = question_of[key]
            asked = _asked_about(bodies[key], texts) if doc_id is None else [doc_id]
            if failure in REFUSALS and asked:
                del failures[key]
                refused |= dict.fromkeys(asked, f"its judge refused the request ({failure})")
    if failures:
        what = f"its judge left {len(failures)} requests without an answer ({next(iter(failures.values()))})"
        remedy = "start the run again once the judge answers, the model's answers are kept"
        raise UserError(f"task {task}: {what}: {remedy}") from cause


def _asked_about(body: str, texts: Mapping[int, set[str]]) -> list[int]:
    """Return the documents that a request is about, which shows all their words, most of all: often one, or equal ones.

    While scores are added up, a task asks about what it has said of a document when it scored it.
    """
    with suppress(*BAD_JSON):
        body = "\n".join(_texts(from_json(body)))  # without the escapes of JSON
    shown = {doc_id: sum(len(text) for text in said if text in body) for doc_id, said in texts.items()}
    most = max(shown.values(), default=0)
    return [doc_id for doc_id, said in texts.items() if most and shown[doc_id] == most and max(said, key=len) in body]


def _texts(value: Any) -> Iterator[str]:
    """Yield every text within lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


@dataclass
class _Module:
    """The top level of a Python file: definitions by name, and the address from which a name is imported."""

    file: Path
    definitions: dict[str, list[ast.AST]] = field(default_factory=dict)
    imports: dict[str, str] = field(default_factory=dict)


class _Reach:
    """What the code of functions reaches: definitions by name, and methods of reached classes by name alone."""

    def __init__(self) -> None:
        self.sends = False
        self.keys: set[str] = set()
        self._followed: set[tuple[Path, str]] = set()
        self._todo: list[Definition] = []
        self._attributes = {"__init__"}
        self._methods: list[tuple[str, Definition]] = []  # of reached classes, by name

    def follow(self, module: _Module, name: str) -> None:
        """Go on with a name at the top level of a module."""
        if (module.file, name) in self._followed:
            return
        self._followed.add((module.file, name))
        if name in module.definitions:
            self._todo += [(module, node) for node in module.definitions[name]]
        elif name in module.imports:
            self._follow_import(module.imports[name])

    def finish(self) -> None:
        """Read all code that is reached."""
        while self._todo:
            module, node = self._todo.pop()
            parts = [node]
            if isinstance(node, ast.ClassDef):
                functions = [part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)]
                self._methods += [(function.name, (module, function)) for function in functions]
                parts = [*node.bases, *(part for part in node.body if part not in functions)]
            for part in parts:
                self._read(module, part)
            self._todo += [code for name, code in self._methods if name in self._attributes]
            self._methods = [method for method in self._methods if method[0] not in self._attributes]

    def _read(self, module: _Module, code: ast.AST) -> None:
        nodes = list(ast.walk(code))
        local = dict(pair for node in nodes for pair in _imports(node, module.file).items())
        for node in nodes:
            if key := _variable(node):
                self.keys.add(key)
            if isinstance(node, ast.Attribute):
                self._attributes.add(node.attr)
                if isinstance(node.value, ast.Name) and (origin := {**module.imports, **local}.get(node.value.id)):
                    self._follow_import(f"{origin}.{node.attr}")
            elif isinstance(node, ast.Name) and node.id in local:
                self._follow_import(local[node.id])
            elif isinstance(node, ast.Name):
                self.follow(module, node.id)

    def _follow_import(self, address: str) -> None:
        """Go on in another file of lmms-eval, or note a client: "openai.OpenAI", "requests.post"."""
        module, _, name = address.rpartition(".")
        package = address.partition(".")[0]
        if address == f"{JUDGE}.get_server":
            self.sends = True
            self.keys |= JUDGE_KEYS
        elif package == "requests":
            self.sends |= name in SENDERS
        elif package in CLIENTS:
            self.sends |= not name.endswith(("Error", "Exception"))  # these are only caught
        elif not address.startswith(JUDGE) and (file := _file_of(module)):
            self.follow(_module(file), name)


def _variable(node: ast.AST) -> str | None:
    """Return the name of a key that code reads from the environment: os.getenv("X"), os.environ["X"] or its get()."""
    name: ast.AST | None = None
    if isinstance(node, ast.Call) and node.args and isinstance(node.func, ast.Attribute | ast.Name):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        name = node.args[0] if called in ("getenv", "get") else None
    elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == "environ":
        name = node.slice
    text = name.value if isinstance(name, ast.Constant) else None
    return text if isinstance(text, str) and KEY.fullmatch(text) else None


def _scoring_functions(config: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Yield file and name of the functions that score a task's answers."""
    metrics = filter(None, config.get("metric_list") or [])
    for function in (config.get("process_results"), *(metric.get("aggregation") for metric in metrics)):
        if isinstance(function, NamedFunction):
            file = _file_of(function.module) or function.folder / f"{function.module}.py"
            if file.is_file():
                yield file, function.name


@cache
def _module(file: Path) -> _Module:
    module = _Module(file)
    for node in _top_level(ast.parse(file.read_text(encoding="utf-8"))):
        module.imports |= _imports(node, file)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            module.definitions.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for name in (part.id for part in ast.walk(target) if isinstance(part, ast.Name)):
                    module.definitions.setdefault(name, []).append(node.value)
    return module


def _top_level(block: ast.AST) -> Iterator[ast.AST]:
    """Yield the parts of a block at the top level of a module, also those below `if`, `try` and `with`."""
    for node in ast.iter_child_nodes(block):
        yield node
        if isinstance(node, ast.If | ast.Try | ast.ExceptHandler | ast.With):
            yield from _top_level(node)


def _imports(node: ast.AST, file: Path) -> dict[str, str]:
    """Return name -> address of an import statement; modules next to `file` have a path in place of the package."""
    if isinstance(node, ast.Import):
        plain = {name.name.partition(".")[0]: name.name.partition(".")[0] for name in node.names if not name.asname}
        return plain | {name.asname: name.name for name in node.names if name.asname}
    if not isinstance(node, ast.ImportFrom):
        return {}
    base = node.module or ""
    if node.level:
        base = "/".join(filter(None, [str(file.parents[node.level - 1]), base.replace(".", "/")]))
    return {name.asname or name.name: f"{base}.{name.name}" for name in node.names}


@cache
def _file_of(module: str) -> Path | None:
    """Return the file of a module of lmms-eval, or of one that is given by its path; None for any other."""
    if module.startswith("lmms_eval."):
        spec = find_spec("lmms_eval")
        assert spec is not None
        assert spec.origin is not None
        path = Path(spec.origin).parents[1] / module.replace(".", "/")
    elif module.startswith("/"):
        path = Path(module)
    else:
        return None
    files = [path.with_name(f"{path.name}.py"), path / "__init__.py"]
    return next((file for file in files if file.is_file()), None)
