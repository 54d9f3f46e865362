"""Train a pocket model: `python -m harness.pocket.train [--model pocket_llava] [--work DIR] [--stage STAGE]`.

The recipe lies in `harness/pocket/recipe` of the repository and is no part of an installed package.
"""

from importlib.util import find_spec

from harness.core.command import fail


def main() -> None:
    """Run the stages of the recipe that are left."""
    if find_spec("harness.pocket.recipe") is None:
        fail("harness.pocket.train needs a checkout of the repository: the package ships without the recipe")
    from harness.pocket.recipe import stages

    stages.main()


if __name__ == "__main__":
    main()
