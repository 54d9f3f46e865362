"""List what benchmarks and a model consist of, and fetch it: python -m harness.data tasks=NAME model=NAME to=FOLDER."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from harness.core.command import command
from harness.core.config import RULES, ModelConfig, RunConfig, TasksConfig, conf, plain, validate
from harness.core.config_groups import check_tasks
from harness.core.console import print_json, say
from harness.core.errors import UserError
from harness.core.files import check_file, check_place, make_folder, write_atomic
from harness.core.overrides import compose
from harness.core.rules import at_least, flag, optional, require
from harness.data import fetch, listing, sources
from harness.data.hub import Listing, NotReachedError, list_files
from harness.data.sources import Source
from harness.evaluation import datasets, preflight
from harness.models import checkpoint

TO = "/folder"  # in commands that are shown, where no to= is given


def configuration(cfg: DictConfig) -> RunConfig:
    """Return model and tasks as a run has them; UserError if one is wrong."""
    shared = {"model": cfg.model, "tasks": cfg.tasks, "data_root": cfg.data_root}
    config = validate(OmegaConf.create({"method": {"name": "none"}, **shared}))
    check_tasks(config.tasks)
    return config


def check(cfg: DictConfig) -> None:
    """Raise UserError for whatever can be refused before anything is looked up."""
    require({"data_root": plain(cfg.data_root), "hub": cfg.hub}, {"data_root": RULES["data_root"], "hub": at_least(0)})
    require(cfg, {"all": flag(), "to": optional(("name one folder, as in to=data", lambda to: isinstance(to, str)))})
    configuration(cfg)
    check_file(cfg.md, "md", may_make_folder=True)
    if cfg.all and cfg.to is not None:
        raise UserError("all=true lists everything: name tasks= and model= to fetch with to=")
    if cfg.md is not None and not cfg.all:
        raise UserError("md= writes the page about all benchmarks and models: add all=true")
    if cfg.to is not None:
        check_place(cfg.to, "to")


def main(cfg: DictConfig) -> None:
    """List, or with `to` fetch, and print the same as one JSON line."""
    if cfg.all:
        return _all(cfg.md)
    config = configuration(cfg)
    model = sources.of_model(config.model)
    found = [*sources.of_tasks(config.tasks), *([model] if model else [])]
    if cfg.to is not None:
        return _fetch(cfg, config, found)
    listings = {(one.kind, one.repository, one.revision): listed for one, listed in _asked(found, float(cfg.hub))}
    rows = [
        listing.row(one, config.data_root, listings.get((one.kind, one.repository, one.revision)), TO) for one in found
    ]
    if rows:
        print(listing.text(rows))
    others = [*_others(config, found), *([] if model else [f"the model is in {config.model.pretrained}"])]
    for line in others:
        say(line)
    if missing := [row.source.name for row in rows if row.place is None]:
        names = f"tasks={cfg.tasks.name} model={config.model.name}"
        say(f"{len(missing)} of {len(rows)} are not here; python -m harness.data {names} to={TO} fetches all")
    print_json({"missing": missing, "sources": [row.as_json() for row in rows]})


def _others(config: RunConfig, found: list[Source]) -> list[str]:
    """Say which tasks have their data next to their files."""
    near = [name for name in config.tasks.metrics if name not in {source.name for source in found}]
    return [f"next to their task files: {', '.join(near)}"] if near else []


def _asked(found: list[Source], timeout: float) -> Iterator[tuple[Source, Listing]]:
    """Ask the Hub about each repository; once it cannot be reached or refuses, say so, and go on with what is known."""
    if timeout == 0:
        return
    for group in sources.by_repository(found):
        try:
            yield group[0], list_files(group[0], timeout)
        except UserError as error:
            say(f"not asked of the Hub: {error}")
            if isinstance(error, NotReachedError):
                return  # each further question would wait as long


def _fetch(cfg: DictConfig, config: RunConfig, found: list[Source]) -> None:
    to = Path(str(cfg.to)).expanduser()
    if not found:
        raise UserError("nothing to fetch: these tasks and this model are on this machine")
    orders = [fetch.Order.of(group, to) for group in sources.by_repository(found)]
    fetch.check_room(orders, to)
    for order in orders:
        fetch.fetch(order, config.model.dtype, say)
    tasks = TasksConfig(metrics={source.name: None for source in found if source.kind == "dataset"})
    places: dict[str, Any] = {name: str(place) for name, place in datasets.local(tasks, str(to)).items()}
    settings = [f"data_root={to}"] * bool(places)
    for order in orders:
        if order.sources[0].kind == "model":
            checkpoint.check_folder(order.folder)
            settings.append(f"model.pretrained={order.folder}")
    say(f"all there; use it with {' '.join(settings)}")
    commits = {order.sources[0].repository: order.listing.commit for order in orders}
    print_json({"to": str(to), "tasks": places, "settings": settings, "commits": commits})


def _all(md: Any) -> None:
    """List every suite of conf/tasks whose data is on the Hub, and every model of conf/model."""
    suites = {}
    for file in sorted(conf("tasks").glob("*.yaml")):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        if content["include"] is None:
            suites[content["name"]] = list(sources.of_tasks(TasksConfig(metrics=content["metrics"])))
    configs = [
        ModelConfig(**compose("config", [f"model={file.stem}"]).model) for file in sorted(conf("model").glob("*.yaml"))
    ]
    models = [source for source in map(sources.of_model, configs) if source]
    page = listing.markdown(suites, models)
    if md is None:
        print(page)
    else:
        make_folder(Path(str(md)).parent)
        write_atomic(Path(str(md)), page)
    print_json({"md": None if md is None else str(md), "suites": list(suites), "models": [one.name for one in models]})


if __name__ == "__main__":
    command("data", main, (check,), preflight.prepare)
