"""Search spaces by name (see `supernet.own_code`): a family's function takes options, and what the data say."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping

from supernet.artifacts.reading import parse_json, typed, typed_arguments
from supernet.families import FAMILIES
from supernet.families.family import Family
from supernet.families.timm_models import SPACES as OF_TIMM
from supernet.families.timm_models import timm_model
from supernet.families.traced.narrowed import narrow_family
from supernet.own_code import Kind
from supernet.tasks import Classification, MultiLabel
from supernet.training.data.image_data import SEVERAL_LABELS

SPACES = Kind("search space", "space", "supernet.families", Family, FAMILIES)
NARROWED = "narrowed"  # an option of spaces of one's own
MOST = 1_000_000  # classes, or channels of images
TEACHER_SPACES = dataclasses.replace(SPACES, flag="teacher-space")


def make_family(space: str, options: str, arguments: Mapping[str, object]) -> Family:
    """The family `space` with `options`, a JSON object, and the `arguments` that data say
    (`supernet.training.data.Data.family_arguments`).

    Of images with several labels each, the data's `several_labels`, the task is `MultiLabel`. A function of one's own
    gets those of the `arguments` that it takes; a function of this package has to take all. The option `narrowed` of a
    function of one's own, which does not see it, says how its one architecture is made of the family's: the arguments
    of `supernet.families.traced.narrowed.narrow_family`.
    ValueError if the space is unknown, or if its function does not take the options or the arguments.
    """
    function = find_family(space)
    several_labels = arguments.get(SEVERAL_LABELS, False)
    arguments = {name: value for name, value in arguments.items() if name != SEVERAL_LABELS}
    is_known = function in FAMILIES.values()
    accepted = inspect.signature(function).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    passed = {name: value for name, value in arguments.items() if takes_all or name in accepted}
    if is_known and (others := [name for name in arguments if name not in passed]):
        other = others[0] if others[0].isidentifier() else repr(others[0])
        raise ValueError(
            f"the space {space!r} takes no {other}, which the data say: it is for data of another kind, name a "
            "space that takes it, or code of your own"
        )
    if is_known:
        passed = _checked(space, typed_arguments(function, passed))
    try:
        given = typed_arguments(function, parse_json(options, dict))
        taken = None if is_known else given.pop(NARROWED, None)
        if taken is not None:
            taken = typed_arguments(narrow_family, typed(dict, taken, NARROWED))
            inspect.signature(narrow_family).bind(None, **taken)
        if not is_known:  # a TypeError from within such a function is its author's to see
            inspect.signature(function).bind(**passed, **given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the options {options} do not fit the space {space!r}: {error}") from error
    try:
        family = function(**passed, **given)
    except TypeError as error:
        if not is_known:
            raise
        raise ValueError(f"the options {options} do not fit the space {space!r}: {error}") from error
    if not isinstance(family, Family):
        raise ValueError(
            f"{space} returns a {type(family).__name__}, where it should return a supernet.families.Family"
        )
    family = family if taken is None else narrow_family(family, **taken)
    return with_several_labels(family, space) if several_labels else family


def with_several_labels(family: Family, space: str) -> Family:
    """The same `family`, whose networks say of each class whether an image shows it; ValueError if those of the `space`
    are for something else than images with classes."""
    if type(family.task) is not Classification:
        raise ValueError(f"the images have several labels each, and the space {space!r} is for {family.task}")
    return dataclasses.replace(family, task=MultiLabel(family.task))


def normalisation(space: str, options: str) -> dict[str, tuple[float, ...]]:
    """The `mean` and `std` of the images that the pretrained model was trained with which a `space` with these
    `options`, a JSON object, starts from; empty where it starts from none, or from one that does not say it."""
    given = parse_json(options, dict)
    if space not in OF_TIMM or not given.get("pretrained"):
        return {}
    name = given.get("name", inspect.signature(find_family(space)).parameters["name"].default)
    config = timm_model(name, saved_config=given.get("saved_config")).config
    return {key: tuple(config[key]) for key in ("mean", "std") if len(config.get(key) or ()) == 3}


def _checked(space: str, arguments: dict[str, object]) -> dict[str, object]:
    for name in ("num_classes", "in_chans"):
        if isinstance(value := arguments.get(name), int) and not 0 <= value <= MOST:
            raise ValueError(f"{name} of the space {space!r} is 0 to {MOST:,}, not {value}")
    return arguments


def find_family(space: str) -> Callable[..., Family]:
    """The function that is called `space`, which is imported for it; ValueError if there is no such function."""
    if (function := SPACES.find(space)) is None:
        raise ValueError(
            f"there is no search space {space!r}; the spaces are {', '.join([*FAMILIES, *SPACES.installed()])}, and "
            "those of your own, as package.module:function or path/to/file.py:function"
        )
    return function
