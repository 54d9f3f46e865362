"""What docs/architecture.md names exists, and its drawing agrees with the imports."""

import ast
import re
from graphlib import TopologicalSorter

import grimp
import pytest
from doc_guides import ROOT

ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMING = ["docs/architecture.md", "docs/contributing.md", "AGENTS.md"]  # pages that name files
NAMED = re.compile(r"`((?:harness|methods|conf|tests|docs|results|scripts)/[\w./]+)(?::([\w.]+))?`")
PRODUCTS = {"report", "bench", "analyze", "train", "pocket", "doctor", "data"}
ROOMS = {"core", "models", "pruning", "results", "evaluation", "prune"}  # each a box of the drawing


def defined(body, name):
    """Return the body of what `body` defines as `name`, empty for a constant; None if it defines no such thing."""
    for node in body:
        if getattr(node, "name", None) == name:
            return node.body
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return []
    return None


@pytest.mark.parametrize("page", NAMING)
def test_files_and_functions_that_are_named_exist(page):
    named = NAMED.findall((ROOT / page).read_text(encoding="utf-8"))
    assert named
    for path, names in (pair for pair in named if "NAME" not in pair[0]):  # a file to be written
        assert (ROOT / path).exists(), path
        body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body if names else []
        for name in filter(None, names.split(".")):
            body = defined(body, name)
            assert body is not None, f"{path}:{names}"


def tree_paths():
    """Yield the paths of the tree: a word is a name if it ends in .py or /, up to the description."""
    parents = []
    for line in re.search(r"^```text\n(.*?)^```$", ARCHITECTURE, re.MULTILINE | re.DOTALL)[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        for name in re.match(r"\s*((?:[\w.]+(?:/|\.py) ?)*)", line)[1].split():
            yield "".join([*parents[:depth], name])
            parents[depth:] = [name]


def test_the_tree_is_that_of_the_repository():
    paths = list(tree_paths())
    assert [path for path in paths if not (ROOT / path).exists()] == []
    top = {path.rstrip("/") for path in paths if path.count("/") - path.endswith("/") == 1}
    there = {f"harness/{path.name}" for path in (ROOT / "harness").iterdir() if path.name[0] not in "._"}
    assert there - top == set()
    of_rooms = {str(path.relative_to(ROOT)) for path in (ROOT / "harness").glob("*/[!_]*.py")}
    assert of_rooms - set(paths) == set()


def box(module):
    """Return the box of the drawing in which a module lies; `harness` itself is what it exports, `prune`."""
    package, _, rest = module.partition(".")
    name = rest.partition(".")[0] or "prune"
    if package == "methods" or name in ROOMS:
        return package if package == "methods" else name
    return "products" if name in PRODUCTS else "commands"


def test_the_drawing_holds_every_import_and_has_no_circle():
    arrows = re.findall(r"^    (\w+) --> (\w+)$", ARCHITECTURE, re.MULTILINE)
    below = {name: set() for arrow in arrows for name in arrow}
    for upper, lower in arrows:
        below[upper].add(lower)
    for name in TopologicalSorter(below).static_order():  # which raises on a circle
        below[name] |= {far for near in below[name] for far in below[near]}
    graph = grimp.build_graph("harness", "methods", exclude_type_checking_imports=True, cache_dir=None)
    upward = [
        f"{module} -> {imported}"
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
        if box(module) != box(imported) and box(imported) not in below[box(module)]
    ]
    assert sorted(upward) == []
