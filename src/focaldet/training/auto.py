"""Settings that are `auto`: decided from the training images before a run is made of them.

A `RunConfig` holds decided values only, and so does the `config.yaml` of a run folder.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from focaldet import config as configs
from focaldet.check import advice
from focaldet.check.advice import Choice
from focaldet.data.dataset import Dataset
from focaldet.data.splits import open_splits
from focaldet.errors import CheckpointError, ConfigError, FocaldetError
from focaldet.models import find_preset, from_config, named_config
from focaldet.training.config import AUTO, AUTO_DEFAULTS, AUTO_SETTINGS, RunConfig
from focaldet.training.run_folder import RunFolder
from focaldet.training.state import initial_weights
from focaldet.weights import load_into
from focaldet.weights.compatibility import FREE, matching_preset
from focaldet.weights.load import saved_settings

OWN_SCALE = advice.BASE_SCALE.removeprefix("architecture.")


class DecidedRun(NamedTuple):
    """Settings without `auto`, and what was chosen for those that were, in the order in which it was decided."""

    config: RunConfig
    choices: tuple[Choice, ...]


def decide_settings(values: Mapping[str, Any], *, source: str = "settings", defaults: bool = False) -> DecidedRun:
    """The run that `values` describe, nested as in a file of settings, with every `auto` decided from its data.

    A run that is resumed keeps what was decided when it began. Without data nothing can be decided, and the defaults of
    `RunConfig` hold.

    Args:
        values: the settings.
        source: what messages call them.
        defaults: whether the settings in `AUTO_DEFAULTS` are `auto` where `values` do not name them.

    Raises:
        ConfigError: a setting that is unknown, out of range or cannot be `auto`, or no detector fits what is given.
        DataError: the data cannot be read.
    """
    values = configs.current_names(RunConfig, values, source=source)
    given = configs.flatten(values)
    asked = [name for name in AUTO_SETTINGS if given.get(name) == AUTO]
    plain = configs.from_dict(RunConfig, without_auto(values), source=source)
    if asked and plain.phases:
        raise ConfigError(f"{asked[0]}: auto is for a run without phases, which say it themselves")
    if defaults:
        asked += [name for name in AUTO_DEFAULTS if name not in given and _is_open(name, plain, given)]
        models = advice.candidate_models() if "model" in asked else (plain.model,)
        if any(may_fit_anchors(replace(plain, model=name), given) for name in models):
            asked.append(advice.BASE_SCALE)
    if not asked or plain.data == type(plain.data)():
        return DecidedRun(plain, ())
    begun = RunFolder(plain.out).config
    if plain.resume and begun.exists():
        chosen = _read_choices(begun, asked)
    else:
        chosen = _follow_rules(plain, asked, given)
        if given.get("size") != AUTO and "model" in asked and chosen[0].value not in advice.small_models():
            chosen = [choice for choice in chosen if choice.setting != "size"]  # it has a size of its own
    for choice in chosen:
        change = choice.value
        for part in reversed(choice.setting.split(".")):
            change = {part: change}
        values = configs.merge(values, change)
    return DecidedRun(configs.from_dict(RunConfig, values, source=source), tuple(chosen))


def _is_open(name: str, plain: RunConfig, given: Mapping[str, Any]) -> bool:
    """Whether a default setting is to be decided: nothing else that was given says it."""
    if name == "size":
        return plain.short_side is None and ("model" not in given or given["model"] in (AUTO, *advice.small_models()))
    return name != "epochs" or (plain.overfit is None and plain.minutes is None)


def may_fit_anchors(config: RunConfig, settings: Iterable[str]) -> bool:
    """Whether the anchors of the detector are to be chosen by `choose_anchors`.

    `settings` are the names of those that were given, such as `architecture.anchors.scales`.
    """
    return not config.phases and advice.has_fitted_anchors(config.model, settings)


def choose_anchors(config: RunConfig, dataset: Dataset) -> Choice:
    """How wide the anchors are: as in the weights where these are of such a detector, else as the smaller objects."""
    start = _read_trained_start(config)
    if start.preset == config.model and start.base_scale is not None:
        return Choice(advice.BASE_SCALE, start.base_scale, "as in the weights")
    return advice.advise_anchors(dataset, config.resize(find_preset(config.model).preprocessing.resize))


class TrainedStart(NamedTuple):
    """The preset whose detector the initial weights are of, and how wide its anchors are where these follow the data.

    Both are None where the weights are of no detector of focaldet's.
    """

    preset: str | None = None
    base_scale: float | None = None


def _read_trained_start(config: RunConfig) -> TrainedStart:
    saved = None if config.weights in (None, AUTO) else saved_settings(str(config.weights))
    if saved is None:
        return TrainedStart()
    fitted = matching_preset(saved, free=frozenset(FREE | {OWN_SCALE}))
    if fitted is not None and advice.has_fitted_anchors(fitted, ()):
        return TrainedStart(fitted, configs.flatten(configs.to_dict(saved))[OWN_SCALE])
    return TrainedStart(matching_preset(saved))


def without_auto(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that are `auto`, whose defaults then hold."""
    rest = {name: value for name, value in values.items() if name not in AUTO_SETTINGS or value != AUTO}
    augment = rest.get("augment")
    if isinstance(augment, Mapping) and augment.get("preset") == AUTO:
        rest["augment"] = {name: value for name, value in augment.items() if name != "preset"}
    return rest


def _read_choices(file: Any, asked: list[str]) -> list[Choice]:
    """What was decided when the run of this `config.yaml` began."""
    begun = configs.flatten(configs.read_mapping(file))
    return [Choice(name, begun[name], f"as in {file}, with which the run began") for name in asked if name in begun]


def _follow_rules(plain: RunConfig, asked: list[str], given: Iterable[str]) -> list[Choice]:
    """What the table of rules says for each setting, those first on which others depend."""
    train = open_splits(plain.data, seed=plain.seed).train
    values: dict[str, Any] = {"model": plain.model, "batch_size": plain.batch_size, "epochs": plain.epochs}
    rules = {
        "model": lambda: choose_model(plain),
        "size": lambda: advice.advise_size(train, find_preset(values["model"]).preprocessing.resize),
        "batch_size": lambda: advice.advise_batch_size(train),
        "epochs": lambda: advice.advise_epochs(train, batch_size=values["batch_size"]),
        "augment.preset": lambda: advice.advise_augmentation(train, epochs=values["epochs"]),
        "sampling": lambda: advice.advise_sampling(train),
    }
    chosen = []
    for name in AUTO_SETTINGS:
        if name in asked:
            choice = rules[name]()
            values[name] = choice.value
            chosen.append(choice)
    if advice.BASE_SCALE in asked and advice.has_fitted_anchors(values["model"], given):
        sized = replace(plain, size=values.get("size", plain.size))
        chosen.append(choose_anchors(replace(sized, model=values["model"]), train))
    return chosen


def choose_model(config: RunConfig) -> Choice:
    """The detector of `model: auto`: the one that the initial weights are of; else the first of `candidate_models` that
    can start from them and has the settings of the architecture that are given.

    Raises:
        CheckpointError, ConfigError: the weights cannot be read, or no detector fits; says why.
    """
    weights = None if config.weights in (None, AUTO) else str(config.weights)
    start = _read_trained_start(config)
    candidates = dict.fromkeys([*([] if start.preset is None else [start.preset]), *advice.candidate_models()])
    fitting: list[str] = []
    problems: list[FocaldetError] = []
    for name in candidates:
        try:
            settings = dict(config.architecture)
            if name == start.preset and start.base_scale is not None:
                settings = configs.merge({"anchors": {"base_scale": start.base_scale}}, settings)
            fitted = named_config(name, architecture=settings)
            if weights is not None:
                preprocessing = find_preset(name).preprocessing
                detector = from_config(fitted, class_names=(), preprocessing=preprocessing)
                if load_into(detector, weights, input=config.weights_input).kind == "detector":
                    return Choice("model", name, "the detector of the weights that are given")
            fitting.append(name)
        except (CheckpointError, ConfigError) as error:
            problems.append(error)
    if not fitting:
        # Of a detector that has the setting at least in part, if there is one.
        known = (
            error for error in problems if any(name in str(error) for name in configs.flatten(config.architecture))
        )
        problem = next(known, problems[0])
        raise type(problem)(f"model: auto knows no detector for these settings; name one with --model ({problem})")
    origin = "ImageNet weights that come with focaldet"
    if weights is not None:
        origin = f"a start from {weights}"
    elif initial_weights(replace(config, model=fitting[0])) is None:
        origin = "random weights"
    first = "small" if fitting[0] == advice.candidate_models()[0] else "the first that fits what is given"
    return Choice("model", fitting[0], f"{first}, with {origin}")
